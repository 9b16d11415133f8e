"""What the tools that write data sets as folders of classes share."""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mvitv2_det.errors import UserError, naming_unwritable


@contextmanager
def new_folder(output: Path, counts: Mapping[str, int], ending: str) -> Iterator[Path | None]:
    """Gives a folder to fill, which gets the name ``output`` at last; None where that is made.

    An interrupted run leaves nothing half-made.

    Args:
        output: will hold ``SPLIT/CLASS/*ENDING``.
        counts: files of each split.
        ending: of the files' names.

    Raises:
        UserError: ``output`` holds something else, or cannot be written.
    """
    if output.exists():
        found = {split: len(list((output / split).glob(f"*/*{ending}"))) for split in counts}
        if found != counts:
            raise UserError(f"--output {output} exists and holds something else: name a new folder")
        yield None
        return
    partial = output.with_name(output.name + ".partial")
    with naming_unwritable(output):
        shutil.rmtree(partial, ignore_errors=True)
        yield partial
        partial.rename(output)


def run(
    make: Callable[..., Mapping[str, int]],
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    what: str,
) -> int:
    """Makes a data set as options say; returns the exit status, 2 for a mistake of the user's.

    Args:
        make: takes the options by their names, and returns the files of each split.
        parser: of the options other than ``--output``.
        arguments: of the command line; None for the process' own.
        what: the files are.
    """
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    options: dict[str, Any] = vars(parser.parse_args(arguments))
    try:
        counts = make(**options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    train, val = counts["train"], counts["val"]
    print(f"{options['output']}: {train} {what} for training, {val} for validation")
    return 0
