"""Checks data sets, and shows what they hold and what is wrong with them.

    mvitv2-det check train.json
    mvitv2-det check data.yaml --output checked
    mvitv2-det check train.json val.json --images images/ --odd drop

DATA is a file or folder of any format that training takes. For each split it prints the instances
by class and size, the images without one, and what training puts right or leaves out. OUTPUT gets
samples_SPLIT.png, a page of annotated images, and faults.txt, the whole list of what is wrong; the
exit status is 2 if there is anything, as training refuses the data then.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, naming_unwritable
from .entry import add_data_arguments

if TYPE_CHECKING:
    from ..data.coco_format import CocoSummary

_SHOWN = 20  # lines of faults on the terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the data and the options."""
    parser.add_argument("data", nargs="+", metavar="DATA", help="file or folder")
    parser.add_argument("--images", help="folder of the images; found out by default")
    add_data_arguments(parser)
    parser.add_argument(
        "--output", type=Path, default=Path("checked"), help="folder (default: checked)"
    )
    parser.add_argument("--samples", type=int, default=12, help="images drawn (default: 12)")


def run(args: argparse.Namespace) -> int:
    """Checks everything, prints it, and draws the samples."""
    if args.samples < 0:
        raise UserError(f"--samples must be 0 or more, got {args.samples}")
    from ..data.examining import examine

    with naming_unwritable(args.output):
        args.output.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    for path in args.data:
        found = examine(path, args.images, args.format, args.odd, args.output)
        print(f"{path}: format {found.format}")
        for name, (summary, images) in found.splits.items():
            label = f"{Path(path).stem}_{name}" if name else Path(path).stem
            print(f"\n{label}: {describe(summary)}")
            if args.samples and summary.content["annotations"]:
                _draw(summary, images, args.output / f"samples_{label}.png", args.samples)
        print()
        for line in found.lines:
            print(f"- {line}")
        faults += found.faults
    return _report(faults, args.output)


def describe(summary: "CocoSummary") -> str:
    """Tabulates what a split holds."""
    from tabulate import tabulate

    from ..data.statistics import SIZES, statistics

    numbers = statistics(summary)
    rows = [
        (name, *(sizes[size] for size in SIZES), sizes.total(), numbers.crowds[name])
        for name, sizes in numbers.instances.items()
    ]
    total = sum(numbers.instances.values(), Counter())
    rows.append(("all", *(total[size] for size in SIZES), total.total(), numbers.crowds.total()))
    few = ", ".join(numbers.empty[:3]) + (", …" if len(numbers.empty) > 3 else "")
    masks = sum("segmentation" in one for one in summary.instances)
    return (
        f"{numbers.images} images, {len(numbers.empty)} of them without an instance"
        f"{f' ({few})' if few else ''}; {masks} of {total.total()} instances have masks\n\n"
        + tabulate(rows, ("class", *SIZES, "all", "crowds"))
    )


def _draw(summary: "CocoSummary", images: str, file: Path, count: int) -> None:
    from ..visualize.samples import draw_samples

    with naming_unwritable(file):
        draw_samples(summary, images, file, count)
    print(f"\n{file} shows {count} of its images at most")


def _report(faults: list[str], output: Path) -> int:
    """Writes the list of what is wrong, and shows its beginning."""
    file = output / "faults.txt"
    with naming_unwritable(file):
        file.write_text("".join(f"{line}\n" for line in faults), encoding="utf-8")
    if not faults:
        print("nothing is wrong: training takes the data")
        return 0
    print(f"{len(faults)} faults, listed in {file}:")
    for line in faults[:_SHOWN]:
        print(f"- {line}")
    if len(faults) > _SHOWN:
        print(f"- and {len(faults) - _SHOWN} more")
    print("training refuses the data; dataset.odd_annotations=drop leaves out what is wrong")
    return 2
