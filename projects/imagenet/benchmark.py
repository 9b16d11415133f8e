#!/usr/bin/env python3
"""Measures classifiers of images against timm's, on the same weights, in turns in one process.

    python projects/imagenet/benchmark.py
    python projects/imagenet/benchmark.py --variants S --batch 32 --device cuda --precision bf16

Images are noise of 224². Compared are the logits, seconds of an inference and of a training step
(forward and backward), and bytes saved for the backward pass. Results: speed.csv and speed.md.
"""

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import timm
import torch

from mvitv2_det import Recognizer, load_weights, replay_graphs
from mvitv2_det.fused import BACKENDS
from projects.common import results as files
from projects.common.compare import compare

TIMM_NAMES = {"T": "mvitv2_tiny", "S": "mvitv2_small", "B": "mvitv2_base", "L": "mvitv2_large"}
IMAGE_SIZE = 224
RESULTS = Path(__file__).parent / "results"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variants", nargs="+", choices=tuple(TIMM_NAMES), default=["T", "B"])
    parser.add_argument("--batch", type=int, default=8, help="images (default: 8)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=files.default_device())
    parser.add_argument("--precision", choices=tuple(files.DTYPES), default="fp32")
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    parser.add_argument("--threads", type=int, help="of a CPU (default: one for each core)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, command: str) -> None:
    """Measures all sizes and writes the results."""
    files.check_measurable(
        args.device, args.precision, batch=args.batch, rounds=args.rounds, threads=args.threads
    )
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = [row for variant in args.variants for row in measure(variant, args, files.Progress())]
    head = {"command": command} | files.describe_machine(args.device)
    head |= {"timm": timm.__version__, "precision": args.precision, "batch": str(args.batch)}
    args.output.mkdir(parents=True, exist_ok=True)
    files.write_csv(args.output / "speed.csv", head, rows)
    title = f"Classifiers of {IMAGE_SIZE}×{IMAGE_SIZE} images against timm's"
    notes = ["Ratios are medians over the rounds, with quartiles."]
    (args.output / "speed.md").write_text(files.markdown(title, head, rows, notes), "utf-8")


def measure(
    variant: str, args: argparse.Namespace, progress: files.Progress
) -> list[dict[str, object]]:
    """The rows of one size: inference, then training."""
    # Stochastic depth would give both networks other work in every step.
    theirs = timm.create_model(TIMM_NAMES[variant], img_size=IMAGE_SIZE, drop_path_rate=0.0)
    ours = Recognizer.image(
        variant, image_size=IMAGE_SIZE, drop_path_rate=0.0, attention_backend=args.backend
    )
    load_weights(ours, theirs, strict=True)
    networks = {"ours": ours.to(args.device), "timm": theirs.to(args.device)}
    if args.device == "cuda":
        networks["ours, CUDA graphs"] = replayed = deepcopy(ours)
        replay_graphs(replayed, training=True)
    images = torch.randn(args.batch, 3, IMAGE_SIZE, IMAGE_SIZE, device=args.device)
    return compare(networks, images, variant, args.rounds, args.precision, progress)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return files.main("projects/imagenet/benchmark.py", parse, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
