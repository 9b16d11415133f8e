#!/usr/bin/env python3
"""Trains or evaluates an MViTv2 classifier of images: the same as 'mvitv2-det train'.

    python projects/imagenet/train.py --config-file projects/imagenet/configs/t_in1k.py --num-gpus 8
    python projects/imagenet/train.py --config-file CONFIG dataset.train=photos train.device=cpu

'python projects/imagenet/train.py --help' says more.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for projects and mvitv2_det

from mvitv2_det.commands import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains or evaluates; returns the exit status. See :mod:`mvitv2_det.commands.train`."""
    return run_command("train", arguments, prog="projects/imagenet/train.py")


if __name__ == "__main__":
    sys.exit(main())
