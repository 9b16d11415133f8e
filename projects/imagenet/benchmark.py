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
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import timm
import torch
from torch import Tensor, nn

from mvitv2_det import Recognizer, load_weights, replay_graphs
from mvitv2_det.fused import BACKENDS
from projects.backbone_benchmark.tables import ratio, seconds_cell, speed_over
from projects.common import results as files
from projects.common.memory import GIB, saved_for_backward
from projects.common.timing import interleave, resident

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
    autocast = partial(
        torch.autocast,
        args.device,
        files.DTYPES[args.precision],
        enabled=args.precision != "fp32",
    )

    @torch.no_grad()
    def infer(network: nn.Module) -> Tensor:
        with autocast():
            return network(images)

    def loss(network: nn.Module) -> Tensor:
        with autocast():
            return network(images).square().mean()

    def train(network: nn.Module) -> None:
        loss(network).backward()
        network.zero_grad()

    rows = []
    for task, step in (("inference", infer), ("training step", train)):
        for network in networks.values():
            network.train(step is train)
        found = interleave(
            {name: resident(partial(step, network)) for name, network in networks.items()},
            rounds=args.rounds,
            device=args.device,
            progress=lambda line, task=task: progress(f"{variant} {task}, {line}"),
        )
        row: dict[str, object] = {"network": variant, "task": task}
        row |= {f"{name} (s)": seconds_cell(timing) for name, timing in found.items()}
        row |= {
            f"{name}: times as fast": ratio(speed_over(timing, found["timm"]))
            for name, timing in found.items()
            if name != "timm"
        }
        rows.append(row)
    saved = {
        name: saved_for_backward(partial(loss, network), [*network.parameters()])
        for name, network in (("ours", ours), ("timm", theirs))
    }
    rows[1] |= {f"{name} saves (GiB)": f"{size / GIB:.3f}" for name, size in saved.items()}
    rows[1]["ratio saved"] = f"{saved['ours'] / saved['timm']:.2f}"
    for network in networks.values():
        network.eval()
    expected = infer(theirs).float()
    difference = (infer(ours).float() - expected).abs().max() / expected.abs().max()
    rows[0]["largest difference"] = f"{difference.item():.1e}"
    columns = dict.fromkeys(name for row in reversed(rows) for name in row)
    return [{name: row.get(name, "") for name in columns} for row in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    return files.main("projects/imagenet/benchmark.py", parse, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
