"""Errors that a user can put right: commands show them as one line, without a stack trace."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST_WORD, _LONGEST_MESSAGE = 300, 2000  # characters


class UserError(ValueError):
    """Wrong input. The message names the culprit, what was expected and got, and what to do.

    It may quote the input: :func:`readable` makes the text fit for a terminal.
    """

    def __str__(self) -> str:
        return readable(super().__str__())


class MissingDetectron2(ImportError, UserError):
    """Detectron2 is not installed. The message says how to get it."""


def readable(text: str) -> str:
    """Escapes control characters, which terminals obey, and shortens what is too long to read."""
    text = "".join(
        char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text
    )
    text = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: f"{word[0][:200]}…{word[0][-40:]}", text)
    if len(text) <= _LONGEST_MESSAGE:
        return text
    return f"{text[:_LONGEST_MESSAGE]}… ({len(text) - _LONGEST_MESSAGE} characters more)"


def one_line(error: BaseException) -> str | None:
    """Finds the line to show for an error; None if the user cannot put it right.

    A :class:`UserError` that was raised in a worker of a data loader or in a training process
    arrives here as another error, whose text is the worker's stack trace and ends with the message.
    """
    name = f"{UserError.__module__}.{UserError.__name__}: "
    lines = str(error).strip().splitlines()
    marked = [line.partition(name)[2] for line in lines if line.startswith(name)]
    if marked:
        return marked[-1]
    return " ".join(lines) if isinstance(error, UserError) else None


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
