"""Writing results as they are found, so that an interrupt or an error loses none."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, TextIO

from ..errors import UserError
from .inputs import Source


def check_writable(folder: Path) -> None:
    """Makes the folder and tries to write into it.

    Raises:
        UserError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to output folder {folder}: {error.strerror}") from error


def distinct_files(folder: Path, names: Mapping[Source, PurePath]) -> dict[Source, Path]:
    """Chooses a file in a folder for each source, so that no two sources share one.

    Args:
        folder: the folder.
        names: wanted, relative to it.

    Raises:
        UserError: a file would replace a source.
    """
    inputs = {source.path.resolve() for source in names}
    files: dict[Source, Path] = {}
    taken: set[str] = set()
    for source, name in names.items():
        number, unique = 1, name
        while str(unique).lower() in taken:  # some file systems do not tell a from A
            number += 1
            unique = name.with_name(f"{name.stem}_{number}{name.suffix}")
        taken.add(str(unique).lower())
        files[source] = folder / unique
        if files[source].resolve() in inputs:
            raise UserError(
                f"the overlay {files[source]} would replace that input: choose another --output"
            )
    return files


class JsonList:
    """Extends a json list in a file, without holding it in memory."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._separator = file, "\n"

    def extend(self, values: Iterable[dict[str, Any]]) -> None:
        for value in values:
            self._file.write(self._separator + json.dumps(value, ensure_ascii=False))
            self._separator = ",\n"


@contextmanager
def json_list(file: Path, head: str, tail: str) -> Iterator[JsonList]:
    """Gives a list that is written to ``file``, between ``head`` and ``tail``."""
    with replacing(file, keeps_part=True) as part, open(part, "w", encoding="utf-8") as stream:
        stream.write(head)
        try:
            yield JsonList(stream)
        finally:
            stream.write(f"\n{tail}\n")


@contextmanager
def replacing(file: Path, *, keeps_part: bool) -> Iterator[Path]:
    """Gives a temporary file to write, which replaces ``file`` when the context ends.

    After an error or an interrupt it replaces ``file`` only if ``keeps_part``, and else is removed.
    """
    part = file.with_name(f".{file.stem}.part{file.suffix}")
    is_done = False
    try:
        yield part
        is_done = True
    finally:
        if part.exists():
            if is_done or keeps_part:
                os.replace(part, file)
            else:
                part.unlink()
