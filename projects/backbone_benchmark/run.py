#!/usr/bin/env python3
"""Measures the backbone against Detectron2's MViT: same weights, same outputs, how much faster.

    python projects/backbone_benchmark/run.py
    python projects/backbone_benchmark/run.py --preset gpu
    python projects/backbone_benchmark/run.py --device cuda --precision bf16 --batch 1 8
    python projects/backbone_benchmark/run.py --parts scaling stages --variants T

Parts: speed (speed and memory of inference and training, also against timm's and a compiled
reference), kernels (pooling and attention over their byte floors, beside SDPA and plain PyTorch),
profile (the operations that take the most time), stages (time of each stage over its floor),
kept (bytes that each block keeps for backward), scaling (against image area), compile
(torch.compile over COCO's sizes), detector (the whole Mask R-CNN) and loss (the same training with
both backbones). Each writes a table as CSV and Markdown, most of them a picture as well, after
every setting, so that a call that is cut off keeps what it has measured.
"""

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for projects and mvitv2_det

import torch

from mvitv2_det import VARIANTS
from mvitv2_det.errors import UserError, one_line
from mvitv2_det.fused import choice as backends
from projects.backbone_benchmark import (
    compiling,
    detector,
    kept,
    kernels,
    loss_curves,
    presets,
    profiling,
    report,
    scaling,
    speed,
    stages,
    warming,
)
from projects.backbone_benchmark.networks import DTYPES, Setting
from projects.backbone_benchmark.presets import Step
from projects.common.memory import limited_memory
from projects.common.results import check_measurable, command_line, describe_machine

SCRIPT = "projects/backbone_benchmark/run.py"
SIZES = ("800x1088", "1024x1024")
RESULTS = Path(__file__).resolve().parent / "results"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=["speed"])
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=["T", "B"])
    parser.add_argument(
        "--sizes", nargs="+", metavar="HEIGHTxWIDTH",
        help=f"of images (default: {' '.join(SIZES)}; compile: common ones of COCO)",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default=_default_device())
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--precision", nargs="+", choices=tuple(DTYPES), default=["fp32"])
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
    parser.add_argument(
        "--minutes", type=float,
        help="of the whole call: no setting is begun after a part's share (default: no limit)",
    )  # fmt: skip
    parser.add_argument(
        "--preset", choices=tuple(presets.PRESETS),
        help="all that is wanted of a GPU, most important first; replaces parts and settings",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(arguments)
    if args.preset:
        args.device, args.backends = "cuda", ["auto", "sdpa"]
        args.minutes = args.minutes or presets.GPU_MINUTES
    return args


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def settings_of(args: argparse.Namespace) -> Iterator[Setting]:
    """Every size of network on every size of image, batch and precision.

    Raises:
        UserError: a size is not two numbers, or too small.
    """
    sizes = [_size_of(text) for text in args.sizes or SIZES]
    for precision, size, batch, variant in product(
        args.precision, sizes, args.batch, args.variants
    ):
        yield Setting(variant, size, batch, precision, args.device)


def _size_of(text: str) -> tuple[int, int]:
    try:
        height, width = map(int, text.lower().replace("×", "x").split("x"))
    except ValueError:
        raise UserError(f"--sizes must be like 800x1088, got {text!r}") from None
    if min(height, width) < 32:
        raise UserError(f"--sizes must be at least 32x32, got {text!r}")
    return height, width


def check(args: argparse.Namespace) -> None:
    """Refuses what cannot be measured.

    Raises:
        UserError: an option does not fit this machine or the others.
    """
    counts = {name: getattr(args, name) for name in ("rounds", "threads", "steps", "minutes")}
    for precision in args.precision:
        check_measurable(args.device, precision, batch=min(args.batch), **counts)
    list(settings_of(args))


def plan(args: argparse.Namespace) -> list[Step]:
    """What is measured, in order."""
    if args.preset:
        return presets.PRESETS[args.preset]()
    return presets.equal_steps(args.parts, list(settings_of(args)))


def triton_version() -> str:
    """Of the compiler of our GPU kernels."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


def free_memory() -> None:
    """Gives a GPU back what the last setting has used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_fresh_process(function: Callable, *arguments) -> Any:
    """What a function of a module returns in a process of its own.

    Memory that a process has mapped once serves it again: what came before would make large
    temporaries cheap, which in a user's process they are not.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure_speed(setting: Setting, args: argparse.Namespace, start: float) -> list[speed.Result]:
    """Speed and memory at one setting."""
    torch.set_num_threads(args.threads or torch.get_num_threads())
    found = speed.candidates(
        setting, backends=args.backends, with_compiled=args.compiled, with_timm=args.timm
    )
    with limited_memory(setting.device):
        return speed.measure(setting, found, args.rounds, partial(say, start))


def say(start: float, line: str) -> None:
    """Prints a line with the seconds since the start."""
    print(f"[{time.perf_counter() - start:6.0f} s] {line}", flush=True)


class Run:
    """One call of the benchmark: its options, and where its results go."""

    def __init__(self, args: argparse.Namespace, command: str) -> None:
        self.args = args
        batches = "-".join(map(str, args.batch))
        kind = f"{args.device}_{'-'.join(args.precision)}_batch{batches}"
        self.folder = args.output / (args.preset or kind)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.head = {
            **describe_machine(args.device),
            "triton": triton_version(),
            "command": command,
            "rounds": f"{args.rounds}, all networks in turns; median (quartiles)",
        }
        self.start = time.perf_counter()

    def run(self, steps: Sequence[Step]) -> None:
        """All steps, one after the other."""
        if self.args.preset:
            warming.warm([setting for step in steps for setting in step.settings], self.progress)
        share = 0.0
        for step in steps:
            share += step.share
            end = math.inf if self.args.minutes is None else 60 * self.args.minutes * share
            PARTS[step.part](self, step, end)

    def within(self, step: Step, end: float) -> Iterator[Setting]:
        """The step's settings, as long as there is time for one that takes as long as the longest.

        Args:
            end: seconds since the start of the run at which the step has to be done.
        """
        longest = 0.0
        for setting in step.settings:
            began = time.perf_counter() - self.start
            if end - began <= longest:
                self.progress(f"{step.name}: no time left for {setting.full_name}")
                return
            yield setting
            longest = max(longest, time.perf_counter() - self.start - began)
            free_memory()

    def progress(self, line: str) -> None:
        """Prints a line with the time."""
        say(self.start, line)

    def limit(self) -> AbstractContextManager:
        """Has allocations fail beyond what is free now; entered anew for each setting, because
        what an allocator keeps for itself counts as in use.
        """
        return limited_memory(self.args.device)

    def write(
        self, name: str, title: str, table: report.Table, *notes: str, shown: bool = True
    ) -> None:
        """A table with this run's head."""
        report.write(self.folder, name, title, self.head, table, *notes, shown=shown)

    def collect(
        self,
        step: Step,
        end: float,
        measure: Callable[[Setting], list],
        title: str,
        table: Callable[[list], report.Table],
        *notes: str,
    ) -> list:
        """Measures setting after setting; the table is on disk after each."""
        results = []
        for setting in self.within(step, end):
            with self.limit():
                results += measure(setting)
            if results:
                self.write(step.name, title, table(results), *notes, shown=False)
        if results:
            left = len(step.settings) - len({result.setting for result in results})
            missing = [f"Time was too short for {left} more settings."] if left else []
            self.write(step.name, title, table(results), *notes, *missing)
        return results

    def speed(self, step: Step, end: float) -> None:
        """Speed and memory at every setting."""

        def measure(setting: Setting) -> list[speed.Result]:
            arguments = (measure_speed, setting, self.args, self.start)
            return (
                in_fresh_process(*arguments)
                if setting.device == "cpu"
                else measure_speed(*arguments[1:])
            )

        title = "The backbone against Detectron2's MViT"
        results = self.collect(step, end, measure, title, report.speed_table, SPEED_NOTE)
        if results:
            report.draw_speed(results, self.folder / f"{step.name}.png")

    def kernels(self, step: Step, end: float) -> None:
        """Pooling and attention over their byte floors."""
        self.collect(
            step,
            end,
            lambda setting: kernels.measure(setting, self.args.rounds, self.progress),
            "Pooling and attention over their byte floors",
            report.kernel_table,
            self._rates(step),
            KERNELS_NOTE,
        )

    def profile(self, step: Step, end: float) -> None:
        """The operations that take the most time."""
        self.collect(
            step,
            end,
            lambda setting: profiling.measure(setting, self.progress),
            "Where the time goes",
            report.profile_table,
        )

    def stages(self, step: Step, end: float) -> None:
        """Time of each stage over its floor."""
        self.collect(
            step,
            end,
            lambda setting: stages.measure(setting, self.args.rounds, self.progress),
            "Time of each stage over its floor",
            report.stage_table,
            self._rates(step),
        )

    def kept(self, step: Step, end: float) -> None:
        """Bytes that each block keeps for backward."""
        self.collect(
            step,
            end,
            lambda setting: kept.measure(setting, self.progress),
            "What each block keeps for backward",
            report.kept_table,
        )

    def _rates(self, step: Step) -> str:
        """A sentence on what this machine reaches."""
        found = []
        for precision in dict.fromkeys(setting.precision for setting in step.settings):
            rates = stages.measure_rates(precision, step.settings[0].device)
            found.append(
                f"multiplies {precision} at {rates.multiply_adds / 1e9:.0f} G multiply-adds/s and "
                f"copies at {rates.bytes / 1e9:.1f} GB/s"
            )
        return f"This machine {'; '.join(found)}."

    def scaling(self, step: Step, end: float) -> None:
        """Time and memory against image area, of the first setting's network."""
        setting = step.settings[0]
        with self.limit():
            points = scaling.measure(setting, self.args.rounds, report=self.progress)
        title = f"MViTv2-{setting.variant}: cost against image area"
        self.write(step.name, title, report.scaling_table(points), report.exponents(points))
        report.draw_scaling(points, self.folder / f"{step.name}.png")

    def compile(self, step: Step, end: float) -> None:
        """Blocks compiled one by one over COCO's sizes, of the first setting's network."""
        setting = step.settings[0]
        sizes = [_size_of(text) for text in self.args.sizes or ()] or compiling.SIZES
        results = compiling.measure(setting, self.args.rounds, sizes, report=self.progress)
        title = f"MViTv2-{setting.variant} under torch.compile"
        self.write(step.name, title, report.compile_table(results), report.compile_note(results))

    def detector(self, step: Step, end: float) -> None:
        """The whole Mask R-CNN at every setting."""
        self.collect(
            step,
            end,
            lambda setting: detector.measure(setting, self.args.rounds, self.progress),
            "The whole Mask R-CNN",
            report.detector_table,
        )

    def loss(self, step: Step, end: float) -> None:
        """The same training with both backbones."""
        curves = loss_curves.measure(self.args.steps, self.progress)
        title = "The same training with both backbones"
        self.write(step.name, title, report.loss_table(curves))
        report.draw_losses(curves, self.folder / f"{step.name}.png")


SPEED_NOTE = (
    "“Largest difference” is that of a feature map, over its largest value. Saved for backward "
    "counts each storage that the forward pass keeps once, weights left out."
)
KERNELS_NOTE = (
    "The byte floor is each input read once and each output written once, at that rate of copying. "
    "The floor is that or the products at that rate of multiplying, whichever is longer in a "
    "block: global attention on large maps cannot reach its byte floor."
)
PARTS: dict[str, Callable[[Run, Step, float], None]] = {
    name: getattr(Run, name)
    for name in (
        "speed", "kernels", "profile", "stages", "kept", "scaling", "compile", "detector", "loss"
    )
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status, 2 where the user has something to put right."""
    args = parse(arguments)
    command = command_line(SCRIPT, sys.argv[1:] if arguments is None else arguments)
    try:
        check(args)
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        Run(args, command).run(plan(args))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
