"""Writing files that are whole or not there, whatever happens meanwhile."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# First letters of what is being written: never the final name of anything.
UNFINISHED = ".writing-"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to, and puts what is there under the final name when it is done.

    The content reaches the disk before the name does, and the name before this returns: a process
    that is killed, or a machine without power, leaves the old file or the new one.

    Args:
        path: the final name; an earlier file is replaced.

    Raises:
        OSError: the disk is full, the folder is read-only, and so on; an earlier file stays.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=UNFINISHED) as folder:
        unfinished = Path(folder) / path.name
        yield unfinished
        _sync(unfinished)
        unfinished.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows neither opens folders nor needs it.
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
