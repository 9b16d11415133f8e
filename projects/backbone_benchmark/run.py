#!/usr/bin/env python3
"""Measures the backbone against Detectron2's MViT: same weights, same outputs, how much faster.

    python projects/backbone_benchmark/run.py
    python projects/backbone_benchmark/run.py --device cuda --precision bf16 --batch 1
    python projects/backbone_benchmark/run.py --parts scaling stages --variants T

Parts: speed (speed and memory of inference and training, also against timm's and a compiled
reference), stages (time of each stage over its floor), scaling (against image area), compile
(torch.compile over COCO's sizes), detector (the whole Mask R-CNN) and loss (the same training with
both backbones). Each writes a table as CSV and Markdown, most of them a picture as well.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for projects and mvitv2_det

import torch

from mvitv2_det import VARIANTS
from mvitv2_det.attention import backends
from mvitv2_det.errors import UserError, one_line
from mvitv2_det.measure import check_measurable, command_line, describe_machine, limited_memory
from projects.backbone_benchmark import (
    compiling,
    detector,
    loss_curves,
    report,
    scaling,
    speed,
    stages,
)
from projects.backbone_benchmark.networks import DTYPES, Setting

SCRIPT = "projects/backbone_benchmark/run.py"
RESULTS = Path(__file__).resolve().parent / "results"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=["speed"])
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=["T", "B"])
    parser.add_argument(
        "--sizes", nargs="+", default=["800x1088", "1024x1024"], metavar="HEIGHTxWIDTH"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default=_default_device())
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    parser.add_argument("--threads", type=int, help="of a CPU (default: one for each core)")
    parser.add_argument(
        "--backends", nargs="+", choices=backends.names(), default=["auto"],
        help="of ours that are compared (default: auto, the fastest)",
    )  # fmt: skip
    parser.add_argument(
        "--compiled", action="store_true", help="also the reference under torch.compile (minutes)"
    )
    parser.add_argument("--timm", action="store_true", help="also timm's network")
    parser.add_argument("--steps", type=int, default=loss_curves.STEPS, help="of the loss curves")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(arguments)


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def settings_of(args: argparse.Namespace) -> Iterator[Setting]:
    """Every size of network on every size of image.

    Raises:
        UserError: a size is not two numbers, or too small.
    """
    for text in args.sizes:
        try:
            height, width = map(int, text.lower().replace("×", "x").split("x"))
        except ValueError:
            raise UserError(f"--sizes must be like 800x1088, got {text!r}") from None
        if min(height, width) < 32:
            raise UserError(f"--sizes must be at least 32x32, got {text!r}")
        for variant in args.variants:
            yield Setting(variant, (height, width), args.batch, args.precision, args.device)


def check(args: argparse.Namespace) -> None:
    """Refuses what cannot be measured.

    Raises:
        UserError: an option does not fit this machine or the others.
    """
    counts = {name: getattr(args, name) for name in ("batch", "rounds", "threads", "steps")}
    check_measurable(args.device, args.precision, **counts)
    list(settings_of(args))


class Run:
    """One call of the benchmark: its options, and where its results go."""

    def __init__(self, args: argparse.Namespace, command: str) -> None:
        self.args = args
        self.settings = list(settings_of(args))
        kind = f"{args.device}_{args.precision}_batch{args.batch}"
        self.folder = args.output / kind
        self.folder.mkdir(parents=True, exist_ok=True)
        self.head = {
            **describe_machine(args.device),
            "command": command,
            "precision": args.precision,
            "batch": str(args.batch),
            "rounds": f"{args.rounds}, all networks in turns; median (quartiles)",
        }
        self.start = time.perf_counter()

    def progress(self, line: str) -> None:
        """Prints a line with the time."""
        print(f"[{time.perf_counter() - self.start:6.0f} s] {line}", flush=True)

    def limit(self) -> AbstractContextManager:
        """Has allocations fail beyond what is free now; entered anew for each setting, because
        what an allocator keeps for itself counts as in use.
        """
        return limited_memory(self.args.device)

    def write(self, name: str, title: str, table: report.Table, *notes: str) -> None:
        """A table with this run's head."""
        report.write(self.folder, name, title, self.head, table, *notes)

    def speed(self) -> None:
        """Speed and memory at every setting."""
        results = []
        for setting in self.settings:
            found = speed.candidates(
                setting,
                backends=self.args.backends,
                with_compiled=self.args.compiled,
                with_timm=self.args.timm,
            )
            with self.limit():
                results += speed.measure(setting, found, self.args.rounds, self.progress)
        table = report.speed_table(results)
        self.write("speed", "The backbone against Detectron2's MViT", table, SPEED_NOTE)
        report.draw_speed(results, self.folder / "speed.png")

    def stages(self) -> None:
        """Time of each stage over its floor."""
        found = []
        for setting in self.settings:
            with self.limit():
                found += stages.measure(setting, self.args.rounds, self.progress)
        rates = stages.measure_rates(self.settings[0])
        note = (
            f"This machine multiplies at {rates.multiply_adds / 1e9:.0f} G multiply-adds/s and "
            f"copies at {rates.bytes / 1e9:.1f} GB/s."
        )
        self.write("stages", "Time of each stage over its floor", report.stage_table(found), note)

    def scaling(self) -> None:
        """Time and memory against image area, of the first variant."""
        with self.limit():
            points = scaling.measure(self.settings[0], self.args.rounds, report=self.progress)
        title = f"MViTv2-{self.settings[0].variant}: cost against image area"
        self.write("scaling", title, report.scaling_table(points), report.exponents(points))
        report.draw_scaling(points, self.folder / "scaling.png")

    def compile(self) -> None:
        """``torch.compile`` over COCO's sizes, of the first variant."""
        result = compiling.measure(self.settings[0], self.args.rounds, report=self.progress)
        title = f"MViTv2-{self.settings[0].variant} under torch.compile"
        self.write("compile", title, report.compile_table(result), report.compile_note(result))

    def detector(self) -> None:
        """The whole Mask R-CNN at every setting."""
        results = []
        for setting in self.settings:
            with self.limit():
                results += detector.measure(setting, self.args.rounds, self.progress)
        self.write("detector", "The whole Mask R-CNN", report.detector_table(results))

    def loss(self) -> None:
        """The same training with both backbones."""
        curves = loss_curves.measure(self.args.steps, self.progress)
        self.write("loss", "The same training with both backbones", report.loss_table(curves))
        report.draw_losses(curves, self.folder / "loss.png")


SPEED_NOTE = (
    "“Largest difference” is that of a feature map, over its largest value. Saved for backward "
    "counts each storage that the forward pass keeps once, weights left out."
)
PARTS: dict[str, Callable[[Run], None]] = {
    name: getattr(Run, name)
    for name in ("speed", "stages", "scaling", "compile", "detector", "loss")
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status, 2 where the user has something to put right."""
    args = parse(arguments)
    command = command_line(SCRIPT, sys.argv[1:] if arguments is None else arguments)
    try:
        check(args)
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        run = Run(args, command)
        for part in args.parts:
            PARTS[part](run)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
