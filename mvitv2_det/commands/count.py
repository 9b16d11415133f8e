"""Counts multiply-adds and parameters of detectors, part by part.

    mvitv2-det count configs/cascade/cascade_mask_rcnn_mvitv2_h_3x.py
    mvitv2-det count --all
    mvitv2-det count mask_rcnn_mvitv2_t_3x --image-size 1024 1024 --proposals 500

A CONFIG is a file, or the name of a config of this project. The defaults are the protocol that
gives the paper's Table 5. Nothing is computed: any size is counted in seconds on any machine.
"""

import argparse
from typing import TYPE_CHECKING

from ..errors import UserError
from .entry import add_trust_argument

if TYPE_CHECKING:
    from ..detection.costs import Costs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the configs and the options; options left out are count_costs' own defaults."""
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="name or file of a config")
    add_trust_argument(parser)
    parser.add_argument("--all", action="store_true", help="every config of the project")
    parser.add_argument("--image-size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--proposals", type=int, help="regions per box head")
    parser.add_argument("--detections", type=int, help="regions with masks")


def run(args: argparse.Namespace) -> int:
    """Prints a table for each config."""
    if args.all == bool(args.configs):
        raise UserError("name one config or more, or give --all alone")
    from ..config import config_files
    from ..detection.costs import count_costs
    from ..trained import read_config

    sizes = {
        name: getattr(args, name)
        for name in ("image_size", "proposals", "detections")
        if getattr(args, name) is not None
    }
    for name in list(config_files()) if args.all else args.configs:
        costs = count_costs(read_config(name, trust=args.trust), **sizes)
        height, width = costs.image_size
        print(
            f"{name}: {height}×{width} pixels, {costs.proposals} proposals, "
            f"{costs.detections} detections\n\n{table(costs)}\n"
        )
    return 0


def table(costs: "Costs") -> str:
    """Tabulates the parts and their sum, one a line."""
    from tabulate import tabulate

    rows = [
        (part.name, part.giga, part.giga_with_batch_norm, part.million_parameters)
        for part in (*costs.parts, costs.total)
    ]
    headers = ("part", "G multiply-adds", "with batch norm", "M parameters")
    return tabulate(rows, headers, floatfmt=("", ".2f", ".2f", ".3f"))
