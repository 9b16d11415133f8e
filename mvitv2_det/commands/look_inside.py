"""Draws what a place of an image attends to, and the feature maps of an image.

    mvitv2-det look-inside photo.jpg --position 120 200 --output inside \\
        --config output/RUN/config.yaml --weights output/RUN/model_final.pth
    mvitv2-det look-inside photo.jpg --position 120 200 --output inside --block 1 2 \\
        --config mask_rcnn_mvitv2_t_3x --weights timm://mvitv2_tiny

CONFIG is a file, or the name of a config of this project, of a detector or of a backbone alone.
Weights of a backbone are enough. Writes into the output folder:

    attention_block_N.png  for each block: which keys the query at the position attends to, as the
                           mean over heads and per head; the query marked, its window outlined
    feature_maps.png       norm and main components of the backbone's map of each scale
"""

import argparse
import logging
from pathlib import Path

from ..errors import naming_unwritable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the image and the options."""
    parser.add_argument("image", type=Path, metavar="IMAGE")
    parser.add_argument("--config", required=True, help="file or name of a LazyConfig")
    parser.add_argument("--weights", required=True, help="a path, a URL, detectron2://…, timm://…")
    parser.add_argument(
        "--position",
        required=True,
        nargs=2,
        type=int,
        metavar=("Y", "X"),
        help="of the query, in pixels of the image",
    )
    parser.add_argument(
        "--block", nargs="+", type=int, help="from 0 on (default: all global blocks)"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder, made if missing")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the config"
    )


def run(args: argparse.Namespace) -> int:
    """Draws, and prints the names of the files."""
    from ..visualize.look_inside import look_inside

    logging.getLogger("mvitv2_det.weights").setLevel(logging.ERROR)
    with naming_unwritable(args.output):
        files = look_inside(
            args.image,
            tuple(args.position),
            args.output,
            config=args.config,
            weights=args.weights,
            overrides=args.opts,
            blocks=args.block,
        )
    for file in files:
        print(file)
    return 0
