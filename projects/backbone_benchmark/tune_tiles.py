#!/usr/bin/env python3
"""Finds the blocks with which each Triton kernel is fastest on this GPU, and writes their table.

    python projects/backbone_benchmark/tune_tiles.py --minutes 1.5
    python projects/backbone_benchmark/tune_tiles.py --kernels attention_forward --table tiles.csv

Shapes are those of T and B at 800×1088 in bf16, with batches of 1 and 8. The kernels that take the
most time come first; table and report are written after each. Rows of other GPUs stay, as do those
of kernels that there was no time for.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for projects and mvitv2_det

import torch

from mvitv2_det.fused.triton import tile_table
from mvitv2_det.fused.triton.launch import Blocks
from mvitv2_det.fused.triton.tile_table import Key
from projects.backbone_benchmark.networks import Setting
from projects.backbone_benchmark.tiles.choosing import (
    KERNELS,
    LEAST_GAIN,
    MOST_LOSS,
    Verdict,
    tune,
)
from projects.backbone_benchmark.tiles.compiler import Compiler
from projects.backbone_benchmark.tiles.shapes import tasks_of
from projects.backbone_benchmark.tiles.timing import GpuBench
from projects.common import results as files
from projects.common.results import Progress, check_measurable, describe_machine

SCRIPT = "projects/backbone_benchmark/tune_tiles.py"
REPORT = Path(__file__).resolve().parent / "results" / "gpu" / "tiles.md"
SETTINGS = [
    Setting(variant, (800, 1088), batch, "bf16", "cuda")
    for variant, batch in product(("B", "T"), (8, 1))
]
NOTE = (
    "Milliseconds are those of one pass of T and one of B, at batch 8 and at batch 1, together: of "
    "the kernel's launches, or of the whole operation where blocks decide how much is added up "
    "after the kernel. A row goes into the table where it saves at least "
    f"{LEAST_GAIN:.0%} of them and loses more than {MOST_LOSS:.0%} on no shape."
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.5, help="in all (default: 1.5)")
    parser.add_argument("--kernels", nargs="+", choices=tuple(KERNELS), default=list(KERNELS))
    parser.add_argument(
        "--table", type=Path, default=tile_table.TABLE, help="to put rows into (default: ours)"
    )
    parser.add_argument("--report", type=Path, default=REPORT, help="what was found, in Markdown")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count(), help="that compile (default: all cores)"
    )
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, command: str) -> None:
    """Tries all candidates while there is time, and writes what was found."""
    check_measurable("cuda", "bf16", minutes=args.minutes, processes=args.processes)
    rows = tile_table.read(args.table) if args.table.exists() else {}
    for file in (args.table, args.report):
        file.parent.mkdir(parents=True, exist_ok=True)
    head = {**describe_machine("cuda"), "command": command}
    device = torch.device("cuda", torch.cuda.current_device())
    gpu = tile_table.names_of(device)
    progress = Progress()

    def left() -> float:
        return 60 * args.minutes - progress.seconds

    compiler = Compiler(SETTINGS, torch.cuda.get_device_capability(device), args.processes)
    bench, verdicts = GpuBench(SETTINGS), []
    try:
        tasks = tasks_of(SETTINGS, [KERNELS[name] for name in args.kernels])
        compiler.begin(tasks)
        progress(f"{len(tasks)} kernels and classes of shapes")
        for task in tasks:
            failed = compiler.failures(task, left)
            name = f"{task.kernel.name}, {task.case}"
            progress(f"{name}: compiled, {len(failed)} not")
            if left() <= 0:
                progress("no time left")
                break
            try:
                verdict = tune(bench, task, failed, lambda: left() > 0)
            except Exception as error:  # of the rule's blocks: other kernels may do better
                progress(f"{name}: {type(error).__name__}: {error}")
                continue
            verdicts.append(verdict)
            update(rows, gpu, verdict)
            tile_table.write(args.table, rows)
            text = files.markdown("Blocks of the Triton kernels", head, report(verdicts), [NOTE])
            args.report.write_text(text, encoding="utf-8")
            progress(f"{name}: {verdict.row or 'the rule stays'}")
    finally:
        compiler.close()


def update(rows: dict[Key, Blocks], gpu: tuple[str, str], verdict: Verdict) -> None:
    """Puts a task's row into the table, or takes it out; leaves it where not all was tried."""
    key = Key(*gpu, verdict.task.kernel.name, verdict.task.case)
    if verdict.complete:
        rows.pop(key, None)
    if verdict.row is not None:
        rows[key] = verdict.row


def report(verdicts: Sequence[Verdict]) -> list[dict[str, str]]:
    """Makes the rows of the report."""
    lines = []
    for verdict in verdicts:
        task = verdict.task
        done = verdict.complete
        others = [why for why in verdict.failed.values() if why.startswith("other outputs")]
        lines.append(
            {
                "kernel": task.kernel.name,
                "shapes": f"{task.case.terms} columns" * bool(task.case.terms)
                + ", few keys" * task.case.few_keys,
                "rule": _name(verdict.rule),
                "rule ms": f"{1e3 * verdict.seconds[verdict.rule]:.3f}" if done else "no time",
                "fastest": _name(verdict.fastest) if done else "",
                "ms": f"{1e3 * verdict.seconds[verdict.fastest]:.3f}" if done else "",
                "gain": f"{verdict.gain:.1%}" if done else "",
                "kept": "yes" if verdict.row else "no",
                "tried": str(len(set(task.kernel.candidates) | {verdict.rule})),
                "not compiled or run": str(len(verdict.failed) - len(others)),
                "other outputs": str(len(others)),
                "spilled": str(len(verdict.spilled)),
                "slower on a shape": str(len(verdict.slower)),
                "first failure": next(iter(verdict.failed.values()), ""),
            }
        )
    return lines


def _name(blocks: Blocks) -> str:
    limit = "" if blocks.registers is None else f", {blocks.registers} registers"
    size = f"{blocks.queries}×{blocks.keys}" if blocks.keys else str(blocks.queries)
    return f"{size}, {blocks.warps} warps, {blocks.stages} stages{limit}"


def main(arguments: list[str] | None = None) -> int:
    """Tunes and returns the exit status."""
    return files.main(SCRIPT, parse, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
