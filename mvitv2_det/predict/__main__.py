"""``python -m mvitv2_det.predict``: the same as ``mvitv2-det predict``."""

import sys
from collections.abc import Sequence

from ..commands import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Predicts; returns the exit status. See :mod:`mvitv2_det.commands.predict`."""
    return run_command("predict", arguments, prog="python -m mvitv2_det.predict")


if __name__ == "__main__":
    sys.exit(main())
