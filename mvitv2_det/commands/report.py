"""Writes one HTML page about a training or an evaluation: its results, mistakes, data and config.

    mvitv2-det report output/demo
    mvitv2-det report output/demo --images 8 --score-threshold 0.3 --output page.html

The page needs no other file and no network. Of a detector it shows AP by class and size, curves of
the training and of precision and recall, mistakes by kind and what they cost, what is confused, the
best and the worst images, and what the data hold; of a classifier, what it confuses and its worst
mistakes; of both, the commands, the versions and the config.

The data are found at the paths in the run's config: if those are relative, start this from the
folder that the training was started from. Without them the page holds less.
"""

import argparse
from pathlib import Path

from .entry import add_trust_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the run and the options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder")
    parser.add_argument("--output", type=Path, help="file (default: report.html in the folder)")
    parser.add_argument(
        "--images", type=int, default=4, help="best and worst images, each (default: 4)"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        help="of detections drawn or counted as confused (default: 0.5)",
    )
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Writes the page and prints its name."""
    from ..report.writing import ReportOptions, write_report

    options = ReportOptions(args.images, args.score_threshold)
    print(write_report(args.run, args.output, options, args.trust))
    return 0
