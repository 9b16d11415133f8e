#!/usr/bin/env python3
"""Measures the backbone against Detectron2's MViT with the same weights and outputs.

    python projects/backbone_benchmark/run.py
    python projects/backbone_benchmark/run.py --preset gpu
    python projects/backbone_benchmark/run.py --preset cpu_runtimes
    python projects/backbone_benchmark/run.py --device cuda --precision bf16 --batch 1 8
    python projects/backbone_benchmark/run.py --parts scaling stages --variants T
    python projects/backbone_benchmark/run.py --sizes 800x1088 --against ../other-checkout

Parts:
  speed              inference and training, also against timm's network, a compiled reference and
                     another checkout of this project
  kernels            pooling and attention over their roofline, beside SDPA and plain PyTorch
  profile            operations that take the most time
  stages             time of each stage over its roofline
  saved_activations  bytes that each block saves for its backward pass
  scaling            time and memory against image area
  compile            torch.compile over COCO's sizes
  detector           the whole Mask R-CNN
  cpu_runtimes       backbone and Mask R-CNN by PyTorch, OpenVINO and ONNX Runtime
  counters           inference by PyTorch and by OpenVINO, kind of operation by kind
  wing               what each file of mvitv2_det/fused gains on a CPU
  loss               the same training with both backbones

Each part writes its table as CSV and Markdown after every setting, so that an interrupted call
loses nothing; speed, scaling and loss draw a picture as well.
"""

import argparse
import gc
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for projects and mvitv2_det

from mvitv2_det.third_party_warnings import silence_third_party_warnings

silence_third_party_warnings()  # before that which warns is imported

import torch

from mvitv2_det import VARIANTS
from mvitv2_det.errors import UserError
from mvitv2_det.freed_memory import ENVIRONMENT, keep_freed_memory
from mvitv2_det.fused import BACKENDS
from projects.backbone_benchmark import (
    compiling,
    counters,
    cpu_runtimes,
    detector,
    kernels,
    loss_curves,
    profiling,
    saved_activations,
    scaling,
    speed,
    stages,
    warming,
    wing,
)
from projects.backbone_benchmark.networks import Setting
from projects.backbone_benchmark.rates import measure_rates
from projects.backbone_benchmark.side import HERE, Process
from projects.common import results as files
from projects.common.memory import limited_memory
from projects.common.results import DTYPES, Progress, check_measurable, describe_machine

SCRIPT = "projects/backbone_benchmark/run.py"
SIZES = ("800x1088", "1024x1024")
RESULTS = Path(__file__).resolve().parent / "results"
GPU_MINUTES = 9.0
SPEED_NOTE = (
    "“Largest difference” is that of a feature map, over its largest value. Saved activations are "
    "those that the forward pass saves for backward, each storage once, without weights."
)
KERNELS_NOTE = (
    "The bandwidth bound is each input read once and each output written once, at that rate of "
    "copying. The roofline is the longer one of this bound and of the products at that rate of "
    "multiplying, block by block: global attention on large maps is bound by its products."
)
# Parts that make rows for one setting after another.
TABLES = {
    "kernels": ("Pooling and attention over their roofline", kernels.measure),
    "profile": ("Operations that take the most time", profiling.measure),
    "stages": ("Time of each stage over its roofline", stages.measure),
    "saved_activations": ("Activations that each block saves", saved_activations.measure),
    "detector": ("The whole Mask R-CNN", detector.measure),
    "cpu_runtimes": ("Runtimes on a CPU", cpu_runtimes.measure),
    "counters": ("Where inference spends its time", counters.measure),
    "wing": ("What each file of the wing gains", wing.measure),
}
NOTES = {"kernels": KERNELS_NOTE, "counters": counters.NOTE}
_CPU_NOTE = "Seconds in which the one thread computes: others may use the machine."
_CLOCKED = ("cpu_runtimes", "wing")
PARTS = ("speed", *TABLES, "scaling", "compile", "loss")


@dataclass(frozen=True)
class Step:
    """One part of the benchmark at some settings.

    Attributes:
        part: one of :data:`PARTS`.
        name: name of the files that it writes.
        settings: the most important one first.
        share: share of the time of the whole call; time left over goes to later steps.
    """

    part: str
    name: str
    settings: tuple[Setting, ...]
    share: float


def gpu_steps() -> list[Step]:
    """Plans what must be known of a large GPU, the most important first, in under ten minutes."""

    def settings(sizes: Sequence[str], batches: Sequence[int], precision: str) -> tuple:
        return tuple(_settings(("T", "B"), sizes, batches, [precision], "cuda"))

    low = settings(SIZES, (1, 8), "bf16")
    first, fp16 = (settings(SIZES[:1], (1, 8), precision) for precision in ("bf16", "fp16"))
    fp32, *_ = settings(SIZES[:1], (1,), "fp32")
    return [
        Step("speed", "speed", low, 0.6),
        Step("speed", "speed_other_types", (*fp16[::2], fp32), 0.08),
        Step("profile", "profile", first[::2], 0.1),
        Step("detector", "detector", first, 0.15),
        Step("kernels", "kernels", low, 0.07),
    ]


def cpu_steps(sizes: Sequence[str], precisions: Sequence[str]) -> list[Step]:
    """Plans what a CPU's runtimes are compared by: T and B, and operations of T."""
    settings = tuple(_settings(("T", "B"), sizes, (1,), precisions, "cpu"))
    small = tuple(setting for setting in settings if setting.variant == "T")
    return [
        Step("cpu_runtimes", "cpu_runtimes", settings, 0.8),
        Step("counters", "counters", small, 0.2),
    ]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["speed"])
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=["T", "B"])
    parser.add_argument(
        "--sizes", nargs="+", metavar="HEIGHTxWIDTH",
        help=f"of images (default: {' '.join(SIZES)}; compile: common ones of COCO)",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default=files.default_device())
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--precision", nargs="+", choices=tuple(DTYPES), default=["fp32"])
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    parser.add_argument("--threads", type=int, help="of a CPU (default: one for each core)")
    parser.add_argument(
        "--backends", nargs="+", choices=BACKENDS, default=["auto"],
        help="of ours that are compared (default: auto, the fastest)",
    )  # fmt: skip
    parser.add_argument(
        "--compiled", action="store_true", help="also the reference under torch.compile (minutes)"
    )
    parser.add_argument("--timm", action="store_true", help="also timm's network")
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT",
        help="also the backbone of another checkout of this project, in turns with this one's "
        "(speed alone)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-freed-memory", action="store_true",
        help="as the project's commands do on Linux; all networks alike",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=loss_curves.STEPS, help="of the loss curves")
    parser.add_argument(
        "--minutes", type=float,
        help="of the whole call: no setting is begun after a part's share (default: no limit)",
    )  # fmt: skip
    parser.add_argument(
        "--preset", choices=("gpu", "cpu_runtimes"),
        help="all that is wanted of a GPU, or of runtimes on a CPU; replaces parts and settings",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args(arguments)
    if args.preset == "cpu_runtimes":
        args.device = "cpu"
    if args.preset == "gpu":
        args.device, args.backends = "cuda", ["auto", "sdpa"]
        args.minutes = args.minutes or GPU_MINUTES
    return args


def _settings(
    variants: Sequence[str],
    sizes: Sequence[str],
    batches: Sequence[int],
    precisions: Sequence[str],
    device: str,
) -> Iterator[Setting]:
    read = [_size_of(text) for text in sizes]
    for precision, size, batch, variant in product(precisions, read, batches, variants):
        yield Setting(variant, size, batch, precision, device)


def _size_of(text: str) -> tuple[int, int]:
    try:
        height, width = map(int, text.lower().replace("×", "x").split("x"))
    except ValueError:
        raise UserError(f"--sizes must be like 800x1088, got {text!r}") from None
    if min(height, width) < 32:
        raise UserError(f"--sizes must be at least 32x32, got {text!r}")
    return height, width


def check(args: argparse.Namespace) -> None:
    """Refuses options that cannot be measured.

    Raises:
        UserError: an option does not suit this machine or another option.
    """
    counts = {name: getattr(args, name) for name in ("rounds", "threads", "steps", "minutes")}
    for precision in args.precision:
        check_measurable(args.device, precision, batch=min(args.batch), **counts)
    if args.against and not (args.against / "mvitv2_det" / "__init__.py").is_file():
        raise UserError(
            f"--against must be a checkout of this project, with a folder mvitv2_det; there is "
            f"none in {args.against}"
        )


def plan(args: argparse.Namespace) -> list[Step]:
    """Lists what is measured, in order; without a preset each part has the same share of time."""
    if args.preset == "gpu":
        return gpu_steps()
    if args.preset == "cpu_runtimes":
        return cpu_steps(args.sizes or SIZES[:1], args.precision)
    settings = _settings(
        args.variants, args.sizes or SIZES, args.batch, args.precision, args.device
    )
    every = tuple(settings)
    return [Step(part, part, every, 1 / len(args.parts)) for part in args.parts]


def version_of(checkout: Path) -> str:
    """Names a checkout by its commit, or by its folder where Git does not know it."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return checkout.resolve().name


def _triton_version() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


class Run:
    """One call of the benchmark, with its options and the folder of its results."""

    def __init__(self, args: argparse.Namespace, command: str) -> None:
        self.args = args
        batches = "-".join(map(str, args.batch))
        kind = f"{args.device}_{'-'.join(args.precision)}_batch{batches}"
        kind += "_kept_memory" * args.keep_freed_memory
        self.folder = args.output / (args.preset or kind)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.head = {
            **describe_machine(args.device),
            "triton": _triton_version(),
            "command": command,
            "rounds": f"{args.rounds}, all networks in turns; median (quartiles)",
        }
        self.progress = Progress()

    def run(self, steps: Sequence[Step]) -> None:
        """Runs all steps, one after the other."""
        if self.args.device == "cuda" and self.args.preset:
            warming.warm([setting for step in steps for setting in step.settings], self.progress)
        share = 0.0
        for step in steps:
            share += step.share
            end = math.inf if self.args.minutes is None else 60 * self.args.minutes * share
            if step.part in TABLES:
                self._table(step, end)
            elif step.part == "speed":
                self._speed(step, end)
            else:
                getattr(self, f"_{step.part}")(step)

    def within(self, step: Step, end: float) -> Iterator[Setting]:
        """Yields settings while there is time for one that takes as long as the longest so far.

        Args:
            end: seconds since the start of the run at which the step has to be done.
        """
        longest = 0.0
        for setting in step.settings:
            began = self.progress.seconds
            if end - began <= longest:
                self.progress(f"{step.name}: no time left for {setting.full_name}")
                return
            # A limit for each setting, because memory that the allocator holds counts as in use.
            with limited_memory(setting.device):
                yield setting
            longest = max(longest, self.progress.seconds - began)
            gc.collect()
            if setting.device == "cuda":
                torch.cuda.empty_cache()

    def write(
        self, name: str, title: str, rows: files.Rows, *notes: str, shown: bool = True
    ) -> None:
        """Writes a table as CSV and Markdown, each with this run's head, and prints it."""
        files.write_csv(self.folder / f"{name}.csv", self.head, rows)
        text = files.markdown(title, self.head, rows, notes)
        (self.folder / f"{name}.md").write_text(text, encoding="utf-8")
        if shown:
            print(f"\n{text}", flush=True)

    def collect(
        self,
        step: Step,
        end: float,
        measure: Callable[[Setting], list],
        title: str,
        *notes: str,
        table: Callable[[list], files.Rows] = list,
    ) -> list:
        """Measures setting after setting, and writes the table after each."""
        results, done = [], 0
        for setting in self.within(step, end):
            results += measure(setting)
            done += 1
            if results:
                self.write(step.name, title, table(results), *notes, shown=False)
        if results:
            left = len(step.settings) - done
            missing = [f"Time was too short for {left} more settings."] if left else []
            self.write(step.name, title, table(results), *notes, *missing)
        return results

    def _table(self, step: Step, end: float) -> None:
        """Measures a part of :data:`TABLES`."""
        title, measure = TABLES[step.part]
        notes = [self._rates(step)] if step.part in ("kernels", "stages") else []
        if step.part in NOTES:
            notes.append(NOTES[step.part])
        if step.part in _CLOCKED and torch.get_num_threads() == 1:
            notes.append(
                "Of one thread: seconds in which it computes, on a machine that is shared."
            )
        self.collect(
            step, end, lambda s: measure(s, self.args.rounds, self.progress), title, *notes
        )

    def _speed(self, step: Step, end: float) -> None:
        """Measures speed and memory at every setting."""
        against = self.args.against
        label = f" ({version_of(against)})" if against else ""
        results = self.collect(
            step,
            end,
            lambda setting: self._speed_at(setting, label),
            "The backbone against Detectron2's MViT",
            SPEED_NOTE,
            table=lambda results: speed.table(results, label),
        )
        if results:
            speed.draw(results, self.folder / f"{step.name}.png")

    def _speed_at(self, setting: Setting, label: str) -> list[speed.Result]:
        args = self.args
        options = speed.Options(args.backends, args.compiled, args.timm, args.threads)
        with ExitStack() as stack:
            if args.against or setting.device == "cpu":
                sides = {"": stack.enter_context(Process(HERE, setting, options))}
            else:
                sides = {"": speed.Networks(setting, options)}
            if args.against:
                other = speed.Options(threads=args.threads, names_backends=False)
                process = Process(args.against.resolve(), setting, other)
                sides[label] = stack.enter_context(process)
            return speed.measure(setting, sides, args.rounds, self.progress)

    def _rates(self, step: Step) -> str:
        """Says in a sentence what rates this machine reaches."""
        found = []
        for precision in dict.fromkeys(setting.precision for setting in step.settings):
            rates = measure_rates(precision, step.settings[0].device)
            found.append(
                f"multiplies {precision} at {rates.multiply_adds / 1e9:.0f} G multiply-adds/s and "
                f"copies at {rates.bytes / 1e9:.1f} GB/s"
            )
        return f"This machine {'; '.join(found)}."

    def _scaling(self, step: Step) -> None:
        """Measures time and memory against image area, of the first setting's network."""
        setting = step.settings[0]
        with limited_memory(setting.device):
            points = scaling.measure(setting, self.args.rounds, report=self.progress)
        title = f"MViTv2-{setting.variant}: cost against image area"
        self.write(step.name, title, scaling.table(points), scaling.exponents(points))
        scaling.draw(points, self.folder / f"{step.name}.png")

    def _compile(self, step: Step) -> None:
        """Measures blocks compiled one by one over COCO's sizes, of the first setting's network."""
        setting = step.settings[0]
        sizes = [_size_of(text) for text in self.args.sizes or ()] or compiling.SIZES
        rows, note = compiling.measure(setting, self.args.rounds, sizes, report=self.progress)
        self.write(step.name, f"MViTv2-{setting.variant} under torch.compile", rows, note)

    def _loss(self, step: Step) -> None:
        """Trains a small detector with both backbones."""
        losses = loss_curves.measure(self.args.steps, self.progress)
        title = "The same training with both backbones"
        self.write(step.name, title, loss_curves.table(losses))
        loss_curves.draw(losses, self.folder / f"{step.name}.png")


def run(args: argparse.Namespace, command: str) -> None:
    """Checks the options, measures and writes."""
    check(args)
    steps = plan(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.keep_freed_memory:
        if not keep_freed_memory():
            raise UserError(
                "--keep-freed-memory needs Linux with glibc 2.35 or newer, and none of the "
                "environment variables MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_ and "
                "GLIBC_TUNABLES"
            )
        os.environ |= ENVIRONMENT  # of the processes in which each setting is measured
    Run(args, command).run(steps)


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    return files.main(SCRIPT, parse, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
