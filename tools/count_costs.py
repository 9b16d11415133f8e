#!/usr/bin/env python3
"""Counts multiply-adds and parameters of detectors, part by part.

    python tools/count_costs.py configs/cascade/cascade_mask_rcnn_mvitv2_h_3x.py
    python tools/count_costs.py --all
    python tools/count_costs.py mask_rcnn_mvitv2_t_3x --image-size 1024 1024 --proposals 500

A config is named as in mvitv2_det.get_config, or given as a file. The defaults are the protocol
that gives the paper's Table 5. Nothing is computed: any size is counted in seconds on any machine.
"""

import argparse
import sys
from pathlib import Path

from omegaconf import DictConfig
from tabulate import tabulate

from mvitv2_det.config import config_files, get_config, load_config
from mvitv2_det.costs import DETECTIONS, IMAGE_SIZE, PROPOSALS, Costs, count_costs
from mvitv2_det.errors import UserError, one_line


def find_config(name: str) -> DictConfig:
    """The config of that file or name."""
    is_file = Path(name).suffix in (".py", ".yaml", ".yml")
    return load_config(name) if is_file else get_config(name)


def table(costs: Costs) -> str:
    """The parts and their sum, one a line."""
    rows = [
        (part.name, part.giga, part.giga_with_batch_norm, part.million_parameters)
        for part in (*costs.parts, costs.total)
    ]
    headers = ("part", "G multiply-adds", "with batch norm", "M parameters")
    return tabulate(rows, headers, floatfmt=("", ".2f", ".2f", ".3f"))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; ``--all`` fills in the configs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="name or file of a config")
    parser.add_argument("--all", action="store_true", help="every config of the project")
    parser.add_argument(
        "--image-size", nargs=2, type=int, default=IMAGE_SIZE, metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--proposals", type=int, default=PROPOSALS, help="regions per box head")
    parser.add_argument("--detections", type=int, default=DETECTIONS, help="regions with masks")
    args = parser.parse_args(arguments)
    if args.all == bool(args.configs):
        parser.error("name one config or more, or give --all alone")
    if args.all:
        args.configs = list(config_files())
    return args


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables; returns the exit status, 2 where the user has something to put right."""
    args = parse(arguments)
    try:
        for name in args.configs:
            cfg = find_config(name)
            costs = count_costs(cfg, args.image_size, args.proposals, args.detections)
            height, width = costs.image_size
            print(
                f"{name}: {height}×{width} pixels, {costs.proposals} proposals, "
                f"{costs.detections} detections\n\n{table(costs)}\n"
            )
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
