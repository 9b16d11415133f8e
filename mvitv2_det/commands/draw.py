"""Draws the curves and predictions of a finished training, and prints its AP or accuracies.

    mvitv2-det draw output/demo
    mvitv2-det draw output/demo --images 16 --score-threshold 0.3

Writes into the run's folder:

- curves.png: training losses and validation AP, or accuracies, over the iterations;
- gallery.png (and gallery_2.png, … beyond 8 images): predictions of the last evaluation beside the
  ground truth, on images evenly spaced over the validation split ordered by image id;
- of a classifier, in place of these: confusion.png, how often each class is taken for each, and
  mistakes.png, the images that it is most wrong about.

The data are found at the paths in the run's config: if those are relative, start this from the
folder that the training was started from.
"""

import argparse
from pathlib import Path

from ..errors import UserError, naming_unwritable
from .entry import add_trust_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the run and the options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of the training")
    add_trust_argument(parser)
    parser.add_argument("--images", type=int, default=8, help="drawn (default: 8)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, help="of predictions drawn (default: 0.5)"
    )


def run(args: argparse.Namespace) -> int:
    """Draws everything and prints the table."""
    if args.images < 1:
        raise UserError(f"--images must be 1 or more, got {args.images}")
    if not 0 <= args.score_threshold <= 1:
        raise UserError(f"--score-threshold must be in [0, 1], got {args.score_threshold:g}")
    from ..visualize.results import draw_results

    with naming_unwritable(args.run):
        drawn = draw_results(args.run, args.images, args.score_threshold, trust=args.trust)
    print(f"percent, of the last evaluation, at iteration {drawn.iteration}:\n")
    print(drawn.ap_table, end="\n\n")
    print(f"curves:      {drawn.curves}")
    print(f"predictions: {' '.join(map(str, drawn.predictions))}")
    return 0
