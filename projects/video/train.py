#!/usr/bin/env python3
"""Trains or evaluates an MViTv2 classifier of videos: the same as 'mvitv2-det train'.

    python projects/video/train.py --config-file projects/video/configs/k400_s_16x4.py --num-gpus 8
    python projects/video/train.py --config-file CONFIG dataset.train=clips train.device=cpu

'python projects/video/train.py --help' says more.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for projects and mvitv2_det

from mvitv2_det.commands import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains or evaluates; returns the exit status. See :mod:`mvitv2_det.commands.train`."""
    return run_command("train", arguments, prog="projects/video/train.py")


if __name__ == "__main__":
    sys.exit(main())
