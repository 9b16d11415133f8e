#!/usr/bin/env python3
"""Trains or evaluates an MViTv2 detector: the same as ``mvitv2-det train``.

    python train_net.py --config-file configs/mask_rcnn/mask_rcnn_mvitv2_t_3x.py --num-gpus 8

``python train_net.py --help`` says more.
"""

import sys
from collections.abc import Sequence

from mvitv2_det.commands import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains or evaluates; returns the exit status. See :mod:`mvitv2_det.commands.train`."""
    return run_command("train", arguments, prog="train_net.py")


if __name__ == "__main__":
    sys.exit(main())
