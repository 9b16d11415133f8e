"""Errors that a user can put right: commands show them as one line, without a stack trace."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST_WORD, _LONGEST_LINE = 300, 2000  # characters


class UserError(ValueError):
    """Wrong input. The message names the culprit, what was expected and got, and what to do.

    It may quote the input: :func:`readable` makes the text fit for a terminal.
    """

    def __str__(self) -> str:
        return readable(super().__str__())


class Unreadable(UserError):
    """An image or a video cannot be read. Training can replace it by another."""


class MissingDetectron2(ImportError, UserError):
    """Detectron2 is not installed. The message says how to get it."""


def readable(text: str) -> str:
    """Escapes control characters, which terminals obey, and shortens words too long to read."""
    text = "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text
    )
    return re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: f"{word[0][:200]}…{word[0][-40:]}", text)


def one_line(error: BaseException) -> str | None:
    """Finds the line to show for an error; None if the user cannot put it right.

    A :class:`UserError` that was raised in a worker of a data loader or in a training process
    arrives here as another error, whose text is the worker's stack trace and ends with the message.
    """
    name = rf"{UserError.__module__}\.(?:{UserError.__name__}|{Unreadable.__name__}): "
    lines = str(error).strip().splitlines()
    marked = [re.sub(name, "", line, count=1) for line in lines if re.match(name, line)]
    if not marked and not isinstance(error, UserError):
        return None
    line = marked[-1] if marked else " ".join(lines)
    left_out = len(line) - _LONGEST_LINE
    return f"{line[:_LONGEST_LINE]}… ({left_out} characters more)" if left_out > 0 else line


@contextmanager
def naming_unwritable(path: str | Path) -> Iterator[None]:
    """Turns an OSError into a :class:`UserError` that names the file.

    Args:
        path: the file or folder to name if the error names none.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of standard output has gone; no file is at fault
        raise
    except OSError as error:
        raise UserError(f"cannot write {error.filename or path}: {error}") from error
