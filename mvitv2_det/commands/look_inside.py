"""Draws what a place of an image, or the class token, attends to, and an image's feature maps.

    mvitv2-det look-inside photo.jpg --position 120 200 --output inside \\
        --config output/RUN/config.yaml --weights output/RUN/model_final.pth
    mvitv2-det look-inside photo.jpg --position 120 200 --output inside --block 1 2 \\
        --config mask_rcnn_mvitv2_t_3x --weights timm://mvitv2_tiny
    mvitv2-det look-inside photo.jpg --output inside --weights output/RUN/model_final.pth

CONFIG is a file, or the name of a config of this project, of a detector or of a backbone alone.
Weights of a backbone are enough. Writes into the output folder:

    attention_block_N.png  for each block: which keys the query at the position attends to, as the
                           mean over heads and per head; the query marked, its window outlined
    feature_maps.png       norm and main components of the backbone's map of each scale

Without --config the weights are those of an image classifier, and no Detectron2 is needed: the
attention is drawn over the image as the network sees it, from its class token, or from a position
if one is given; by default for the last block of each stage. There are no feature maps then. Of a
classifier of clips the image is a video: attention in space and time is drawn over the frames of
the clip in its middle, from --frame, one of that clip's, and --position.
"""

import argparse
import logging
from pathlib import Path

from ..errors import UserError, naming_unwritable
from .entry import add_config_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the image and the options."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="or a video, see above")
    parser.add_argument("--config", help="file or name of a LazyConfig; not of a classifier")
    parser.add_argument(
        "--weights",
        required=True,
        help="a name of mvitv2-det models, a path, a URL, detectron2://…, timm://…",
    )
    parser.add_argument(
        "--position",
        nargs=2,
        type=int,
        metavar=("Y", "X"),
        help="of the query, in pixels of the image (default: a classifier's class token)",
    )
    parser.add_argument(
        "--frame", type=int, help="of the query, in a classifier's clip, from 0 on (default: 0)"
    )
    parser.add_argument(
        "--block", nargs="+", type=int, help="from 0 on (default: all global blocks)"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder, made if missing")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Draws, and prints the names of the files."""
    logging.getLogger("mvitv2_det.weights").setLevel(logging.ERROR)
    position = tuple(args.position) if args.position else None
    with naming_unwritable(args.output):
        if args.config is None:
            files = _look_inside_classifier(args, position)
        else:
            files = _look_inside_backbone(args, position)
    for file in files:
        print(file)
    return 0


def _look_inside_classifier(
    args: argparse.Namespace, position: tuple[int, int] | None
) -> list[Path]:
    from ..visualize.look_inside_classifier import look_inside_classifier

    if args.opts:
        raise UserError("--opts are overrides of a config: give --config, too")
    return look_inside_classifier(
        args.image,
        position,
        args.output,
        weights=args.weights,
        blocks=args.block,
        frame=args.frame,
    )


def _look_inside_backbone(args: argparse.Namespace, position: tuple[int, int] | None) -> list[Path]:
    from ..visualize.look_inside import look_inside

    if position is None:
        raise UserError("a config's backbone has no class token to look from: give --position Y X")
    if args.frame is not None:
        raise UserError("--frame is of a classifier of clips, which takes no --config")
    return look_inside(
        args.image,
        position,
        args.output,
        config=args.config,
        weights=args.weights,
        overrides=args.opts,
        trust=args.trust,
        blocks=args.block,
    )
