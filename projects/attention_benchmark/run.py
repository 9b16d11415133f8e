#!/usr/bin/env python3
"""Measures the rows of the paper's comparisons beside the paper's numbers.

    python projects/attention_benchmark/run.py --table 4b --count-only
    python projects/attention_benchmark/run.py --table 4b --image-size 448 448
    python projects/attention_benchmark/run.py --all --device cuda --batch 2 --precision bf16
    python projects/attention_benchmark/run.py --table 4b --train configs/demo.py --seeds 3

Counts parameters and multiply-adds at the paper's protocol, and measures training iterations/s,
test images/s and peak training memory of the rows in turns. Writes a CSV, a Markdown table and a
picture for each table. A row that runs out of memory is reported so, and the others go on.
--train also trains the rows, as small as a detector of one's own, and measures that network.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for projects and mvitv2_det

from mvitv2_det.third_party_warnings import silence_third_party_warnings

silence_third_party_warnings()  # before that which warns is imported

import torch
from omegaconf import DictConfig

from mvitv2_det.detection.costs import IMAGE_SIZE
from mvitv2_det.errors import UserError
from mvitv2_det.fused import BACKENDS
from projects.attention_benchmark.measurement import CLASSIFICATION_SIZE, measure
from projects.attention_benchmark.plots import draw
from projects.attention_benchmark.results_files import markdown, records
from projects.attention_benchmark.tables import Row, Table, model_of, read_tables
from projects.attention_benchmark.training import Trainings
from projects.attention_benchmark.workloads import Settings
from projects.common import results as files
from projects.common.memory import GIB, limited_memory
from projects.common.results import DTYPES, Progress, check_measurable, describe_machine

SCRIPT = "projects/attention_benchmark/run.py"
RESULTS = Path(__file__).resolve().parent / "results"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--table", metavar="NUMBER", help="of the paper: 4a, 4b, 5a, 6, …")
    which.add_argument("--all", action="store_true", help="every table")
    parser.add_argument("--task", choices=("detection", "classification"), help="one alone")
    parser.add_argument("--count-only", action="store_true", help="measure nothing, count alone")
    parser.add_argument(
        "--train", metavar="CONFIG",
        help="of a small detector, a file or a name: train each row at its size, on its data",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="of each row (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once (default: 1)")
    parser.add_argument(
        "opts", nargs="*", metavar="key=value", help="overrides of --train's config"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default=files.default_device())
    parser.add_argument("--batch", type=int, default=1, help="images (default: 1)")
    parser.add_argument(
        "--image-size", nargs=2, type=int, default=IMAGE_SIZE, metavar=("HEIGHT", "WIDTH"),
        help="of detection (default: 800 1280); classification has 224 224",
    )  # fmt: skip
    parser.add_argument("--precision", choices=tuple(DTYPES), default="fp32")
    parser.add_argument(
        "--backend", choices=BACKENDS, default="reference",
        help="what computes attention, of all rows (default: reference)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="of a CPU (default: one for each core)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each row (default: 5)")
    parser.add_argument(
        "--iterations", type=int, help="timed in each turn (default: 1 on a CPU, 10 on a GPU)"
    )
    parser.add_argument(
        "--memory-limit", type=float, metavar="GIB",
        help="beyond which a row counts as out of memory (default: 0.9 of what is free on a "
        "CPU, all that a GPU has)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, help="folder of the results (default: results/ here)"
    )
    return parser.parse_args(arguments)


def check(args: argparse.Namespace) -> None:
    """Refuses options that cannot be measured.

    Raises:
        UserError: an option does not suit this machine or another option.
    """
    names = ("batch", "rounds", "iterations", "threads", "seeds", "jobs")
    counts = {name: getattr(args, name) for name in names}
    if args.opts and not args.train:
        raise UserError(f"{args.opts[0]} is an override of the config of --train, which is missing")
    if args.train and args.count_only:
        raise UserError("--train measures, and --count-only does not: give one of them")
    check_measurable(args.device, args.precision, **counts)
    if min(args.image_size) < 32:
        raise UserError(f"--image-size must be at least 32 32, got {args.image_size}")
    if args.memory_limit is not None and args.memory_limit <= 0:
        raise UserError(f"--memory-limit must be positive, got {args.memory_limit}")


def settings_of(
    args: argparse.Namespace, table: Table, trainings: Trainings | None
) -> Settings | None:
    """Chooses the settings of a table's measurement; None where it is only counted."""
    if args.count_only:
        return None
    size = CLASSIFICATION_SIZE if table.task == "classification" else tuple(args.image_size)
    if trainings:
        size = (trainings.side, trainings.side)
    return Settings(args.device, args.batch, size, args.precision, args.backend)


def head_of(settings: Settings | None, args: argparse.Namespace, command: str) -> dict[str, str]:
    """Makes the head of a result: hardware, versions, command and settings."""
    if settings is None:
        return {"command": command}
    height, width = settings.image_size
    return {
        **describe_machine(settings.device),
        "command": command,
        "images": f"{height}×{width}",
        "batch": str(settings.batch),
        "precision": settings.precision,
        "rounds": str(args.rounds),
    }


def run(args: argparse.Namespace, command: str) -> None:
    """Counts, measures and writes every selected table."""
    check(args)
    tables = read_tables(args.table, args.task)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    output = args.output or RESULTS / _kind(args)
    output.mkdir(parents=True, exist_ok=True)
    progress = Progress()
    limit = None if args.memory_limit is None else int(args.memory_limit * GIB)
    trainings = trainings_of(args, output)
    for table in tables:
        settings, model = settings_of(args, table, trainings), model_of
        if trainings:
            accuracies = trainings.run(table, progress)
            model = partial(_small_model, trainings, table)
        with limited_memory(args.device, limit):
            results = measure(table, settings, args.rounds, args.iterations, progress, model)
        if trainings:
            for result in results:
                result.accuracies = accuracies[result.row.name]
        head = head_of(settings, args, command)
        text = markdown(table, results, head)
        (output / f"{table.slug}.md").write_text(text, encoding="utf-8")
        files.write_csv(output / f"{table.slug}.csv", head, records(results))
        draw(table, results, head, output / f"{table.slug}.png")
        print(f"\n{text}\nwritten: {table.slug}.md, .csv and .png in {output}\n", flush=True)


def trainings_of(args: argparse.Namespace, output: Path) -> Trainings | None:
    """Makes the settings of the trainings; None without ``--train``."""
    if not args.train:
        return None
    folder = output / "runs"
    return Trainings(args.train, tuple(args.opts), args.seeds, args.jobs, folder.resolve())


def _small_model(trainings: Trainings, table: Table, row: Row, task: str) -> DictConfig:
    return trainings.config_of(row, table).model


def _kind(args: argparse.Namespace) -> str:
    if args.train:
        return f"trained_{Path(args.train).stem}"
    return "counts" if args.count_only else args.device


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark and returns the exit status."""
    return files.main(SCRIPT, parse, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
