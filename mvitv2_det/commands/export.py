"""Exports a backbone or a whole detector to a file that runs without this project.

    mvitv2-det export --config CONFIG --weights W --part backbone --format onnx \\
        --output backbone.onnx --dynamic
    mvitv2-det export --config CONFIG --weights W --part detector --format torchscript \\
        --output detector.pt --image-size 800 1216 --check-image photo.jpg

CONFIG is a file, or the name of a config of this project; the config.yaml that training has saved
knows the classes of your own data. A backbone is exported with its FPN and takes normalised images
(B, 3, H, W); a detector takes one image (3, H, W), 0 to 255, and gives boxes, classes, scores and
the masks' probabilities inside of the boxes. torch_export is for backbones alone.

The file is read again and compared with the model before this says that it has succeeded.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, naming_unwritable

if TYPE_CHECKING:
    from torch import Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--config", required=True, help="file or name of a LazyConfig")
    parser.add_argument("--weights", required=True, help="a path, a URL, detectron2://…, timm://…")
    parser.add_argument("--part", required=True, metavar="{backbone,detector}")
    parser.add_argument("--format", required=True, metavar="{torch_export,onnx,torchscript}")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    parser.add_argument(
        "--image-size",
        nargs=2,
        type=int,
        default=(512, 640),
        metavar=("HEIGHT", "WIDTH"),
        help="of the images to trace with, and without --dynamic of all images (default: 512 640)",
    )
    parser.add_argument("--dynamic", action="store_true", help="take images of any size")
    parser.add_argument(
        "--check-image",
        action="append",
        default=[],
        metavar="IMAGE",
        help="compare on this image instead of noise; may be repeated",
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the config"
    )


def run(args: argparse.Namespace) -> int:
    """Exports, and says how near the file is to the model."""
    if not args.output.parent.is_dir():
        raise UserError(f"--output: there is no folder {args.output.parent}")
    from ..export import check_part_and_format, export_model
    from ..trained import read_config, read_trained

    # Exporters and loading log what they do; this command says in one line what is wrong.
    for name in ("torch", "mvitv2_det.weights"):
        logging.getLogger(name).setLevel(logging.ERROR)
    check_part_and_format(args.part, args.format)
    part = "backbone." if args.part == "backbone" else ""
    model = read_trained(read_config(args.config, args.opts), args.weights, part=part)
    images = _read_images(args, getattr(model, "input_format", None) or "RGB")
    with naming_unwritable(args.output):
        comparison = export_model(
            model,
            args.output,
            part=args.part,
            format=args.format,
            image_size=tuple(args.image_size),
            dynamic=args.dynamic,
            check_images=images,
        )
    sizes = ", ".join(f"{height}×{width}" for height, width in comparison.sizes)
    found = "" if comparison.instances is None else f" with {comparison.instances} instances"
    print(
        f"{args.output}: the {args.part} as {args.format}, largest relative error "
        f"{comparison.error:.1e} on images of {sizes}{found}"
    )
    if comparison.instances == 0:
        print(
            "note: nothing was found in the images compared on; name some where the detector "
            "finds something with --check-image",
            file=sys.stderr,
        )
    return 0


def _read_images(args: argparse.Namespace, channel_order: str) -> "list[Tensor]":
    """Reads each ``--check-image`` as (3, H, W), 0 to 255, resized to ``--image-size``."""
    import torch
    from detectron2.data.detection_utils import read_image
    from torch.nn.functional import interpolate

    from ..data import naming_unreadable_image

    images = []
    for file in args.check_image:
        with naming_unreadable_image(file):
            image = torch.tensor(read_image(file, channel_order)).permute(2, 0, 1).float()
        images.append(interpolate(image[None], size=args.image_size, mode="bilinear")[0])
    return images
