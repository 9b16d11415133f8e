#!/usr/bin/env python3
"""Makes videos of moving digits, trains on them, and evaluates with frames in order and shuffled.

    python projects/video/quick_start.py

It takes minutes on two cores of a CPU and downloads nothing. The digits are in
``datasets/moving_digits``, results in ``output/moving_digits``: ``curves.png``, and in
``inference/`` a page of clips with predictions, ``predictions.png``, and what is confused.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for projects and mvitv2_det

from mvitv2_det.third_party_warnings import silence_third_party_warnings

silence_third_party_warnings()  # before that which warns is imported

from mvitv2_det.visualize.results import CLASSIFICATIONS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "projects" / "video" / "configs" / "moving_digits.py"


def main(arguments: Sequence[str] | None = None) -> int:
    """Does all; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("datasets/moving_digits"))
    parser.add_argument("--output", type=Path, default=Path("output/moving_digits"))
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="override of the config")
    args = parser.parse_args(arguments)
    sys.path.insert(0, str(ROOT / "tools"))
    import make_moving_digits

    if status := make_moving_digits.main(["--output", str(args.data)]):
        return status
    shared = ["--config-file", str(CONFIG), f"dataset.train={args.data}", *args.opts]
    if status := _train(*shared, f"train.output_dir={args.output}"):
        return status
    shuffled = args.output / "shuffled"
    status = _train(
        "--eval-only",
        *shared,
        f"dataset.val={args.data}/val",
        f"train.output_dir={shuffled}",
        f"train.init_checkpoint={args.output}/model_final.pth",
        "dataloader.test.shuffle_frames=true",
    )
    if status:
        return status
    in_order, without_order = (_accuracy(folder) for folder in (args.output, shuffled))
    print(f"frames in order: {in_order:.1f} %, shuffled: {without_order:.1f} % (chance: 50 %)")
    print(f"look at {args.output}/curves.png and {args.output}/inference/predictions.png")
    return 0


def _train(*arguments: str) -> int:
    """Trains or evaluates, in a process of its own: logs are of one run each."""
    script = Path(__file__).with_name("train.py")
    return subprocess.call([sys.executable, str(script), *arguments])


def _accuracy(run: Path) -> float:
    """Top-1 of a run's last evaluation, in percent."""
    found = json.loads((run / "inference" / CLASSIFICATIONS).read_text(encoding="utf-8"))
    pairs = list(zip(found["labels"], found["top"], strict=True))
    return 100 * sum(label == top[0] for label, top in pairs) / len(pairs)


if __name__ == "__main__":
    sys.exit(main())
