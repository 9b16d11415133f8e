"""The error for what a user can put right: shown as one line, without a stack trace."""


class UserError(ValueError):
    """Wrong input. The message names the culprit, what was expected and got, and what to do."""


def one_line(error: BaseException) -> str | None:
    """The line to show for an error, or None where it is no :class:`UserError`.

    An error that crossed from a data loader's worker or a training process arrives as text with
    the stack trace in front of its own line.
    """
    name = f"{UserError.__module__}.{UserError.__name__}: "
    lines = str(error).strip().splitlines()
    marked = [line.partition(name)[2] for line in lines if line.startswith(name)]
    if marked:
        return marked[-1]
    return " ".join(lines) if isinstance(error, UserError) else None
