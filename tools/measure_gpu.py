#!/usr/bin/env python3
"""Checks and measures on a GPU, in ten minutes, what only a GPU shows.

    python tools/measure_gpu.py --output build/gpu
    python tools/measure_gpu.py --output build/gpu --stages tests speed --minutes 5

Stages, in this order:
  tests    the tests marked gpu, and all quick ones of the kernels and of CUDA graphs
  tiles    projects/backbone_benchmark/tune_tiles.py, tiles of the Triton kernels, one by one
  speed    projects/backbone_benchmark/run.py --preset gpu
  images   classifiers against timm's, projects/imagenet/benchmark.py
  clips    networks of clips, projects/video/benchmark.py

Each stage is a process of its own, which is ended when its share of the time is over; what it
leaves goes to those after it. In --output are STAGE.txt, what a stage says, and results.zip, the
tables and pictures of all, both written as they come. Needs no network; a stage whose packages
are missing fails alone.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PYTEST = ("-m", "pytest", "--numprocesses", "6", "--durations", "5")
_QUICK = ("tests/fused/triton", "tests/graphs", "-m", "gpu or not long")
_MARKED = ("tests", "-m", "gpu", "--ignore", "tests/fused", "--ignore", "tests/graphs")
_ON_A_GPU = ("--device", "cuda", "--precision", "bf16")


@dataclass(frozen=True)
class Stage:
    """A part of the measurement.

    Attributes:
        share: of the time, beside the shares of the other stages.
        commands: arguments of Python, one process after the other. ``{minutes}`` stands for those
            that it has, ``{output}`` for a folder of its results.
    """

    share: float
    commands: tuple[tuple[str, ...], ...]


STAGES: Mapping[str, Stage] = {
    "tests": Stage(3, ((*_PYTEST, *_QUICK), (*_PYTEST, *_MARKED))),
    "tiles": Stage(
        2,
        (
            (
                "projects/backbone_benchmark/tune_tiles.py", "--minutes", "{minutes}",
                "--table", "{output}/tiles.csv", "--report", "{output}/tiles.md",
            ),
        ),
    ),
    "speed": Stage(
        5,
        (
            (
                "projects/backbone_benchmark/run.py", "--preset", "gpu", "--rounds", "5",
                "--minutes", "{minutes}", "--output", "{output}",
            ),
        ),
    ),
    "images": Stage(
        1,
        tuple(
            (
                "projects/imagenet/benchmark.py", *_ON_A_GPU, "--variants", "T", "B",
                "--batch", batch, "--rounds", "5", "--output", "{output}/images_batch" + batch,
            )
            for batch in ("64", "1")
        ),
    ),
    "clips": Stage(
        1,
        (
            (
                "projects/video/benchmark.py", "--device", "cuda", "--parts", "frames", "side",
                "--rounds", "3", "--output", "{output}/clips",
            ),
        ),
    ),
}  # fmt: skip


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", nargs="+", choices=tuple(STAGES), default=list(STAGES))
    parser.add_argument("--minutes", type=float, default=9.5, help="of all (default: 9.5)")
    parser.add_argument("--output", type=Path, required=True, help="folder of what is written")
    args = parser.parse_args(arguments)
    if args.minutes <= 0:
        parser.error(f"--minutes must be positive, got {args.minutes}")
    return args


def run(args: argparse.Namespace) -> dict[str, str]:
    """Runs the stages.

    Returns:
        how each ended: ``passed``, ``failed`` or ``ended after … s``.
    """
    results = args.output / "results"
    results.mkdir(parents=True, exist_ok=True)
    end, found = time.monotonic() + 60 * args.minutes, {}
    chosen = [name for name in STAGES if name in args.stages]
    for index, name in enumerate(chosen):
        stage = STAGES[name]
        shares = sum(STAGES[later].share for later in chosen[index:])
        seconds = max(end - time.monotonic(), 0) * stage.share / shares
        began = time.monotonic()
        found[name] = _run(name, stage, seconds, args.output)
        print(f"{name}: {found[name]}, {time.monotonic() - began:.0f} s", flush=True)
        shutil.make_archive(str(results), "zip", results)
    return found


def _run(name: str, stage: Stage, seconds: float, output: Path) -> str:
    """Runs a stage's commands, together no longer than some seconds."""
    end, status = time.monotonic() + seconds, "passed"
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    with (output / f"{name}.txt").open("w") as log:
        for command in stage.commands:
            left = end - time.monotonic()
            # A part of the time is the start of the process and its last setting.
            values = {"minutes": f"{0.9 * left / 60:.2f}", "output": str(output / "results")}
            arguments = [part.format(**values) for part in command]
            try:
                done = subprocess.run(
                    [sys.executable, *arguments],
                    cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
                    timeout=max(left, 1), check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return f"ended after {seconds:.0f} s"
            if done.returncode:
                status = "failed"
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the measurement; returns the exit status: 0 if all stages passed."""
    found = run(parse(arguments))
    return 0 if set(found.values()) == {"passed"} else 1


if __name__ == "__main__":
    sys.exit(main())
