#!/usr/bin/env python3
"""Trains or evaluates an MViTv2 that names actions of persons: the same as 'mvitv2-det train'.

    python projects/ava/train.py --config-file projects/ava/configs/s_16x4.py --num-gpus 8
    python projects/ava/train.py --config-file CONFIG --eval-only train.init_checkpoint=model.pth

'python projects/ava/train.py --help' says more.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for projects and mvitv2_det

from mvitv2_det.commands import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains or evaluates; returns the exit status. See :mod:`mvitv2_det.commands.train`."""
    return run_command("train", arguments, prog="projects/ava/train.py")


if __name__ == "__main__":
    sys.exit(main())
