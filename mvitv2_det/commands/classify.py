"""Names the most probable classes of images: a table, a json file and pictures.

    mvitv2-det classify photos/ 'more/**/*.png' --weights output/RUN/model_final.pth --output found
    mvitv2-det classify photo.jpg --weights timm://mvitv2_tiny --output found

A checkpoint that training has saved knows its network, its classes and its preprocessing. Released
weights are recognised by their shapes and get the names of ImageNet; --num-classes 1000 takes the
classes of ImageNet-1K from weights of ImageNet-21K. It needs no Detectron2. Written into the output
folder:

    results.json   a record for each image: file_name, classes, category_ids, probabilities
    sheet_1.png    the images, 30 on a sheet, with their classes

An image that cannot be read is named, and the rest goes on. The exit status is 0; 1 if some image
could not be read; 2 if nothing could be started; 130 after Ctrl-C, which keeps what was found until
then.
"""

import argparse
import logging
from functools import partial
from pathlib import Path

from .entry import exit_status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the images and the options."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, folder, quoted pattern")
    parser.add_argument(
        "--weights", required=True, help="of a classifier: a path, a URL, detectron2://…, timm://…"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder, made if missing")
    parser.add_argument("--top", type=int, default=5, help="classes of each image (default: 5)")
    parser.add_argument(
        "--num-classes", type=int, help="take the first outputs of released weights alone"
    )
    parser.add_argument(
        "--image-size", type=int, help="side of the network's input (default: that of training)"
    )
    parser.add_argument(
        "--squash",
        action="store_true",
        help="resize both sides, so that nothing is cut off (default: as training evaluated)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, help="images at once, at most (default: 8)"
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="{fp32,fp16,bf16}",
        help="fp16 and bf16 are by autocast (default: fp32)",
    )
    parser.add_argument(
        "--cuda-graphs", action="store_true", help="replay the network as CUDA graphs"
    )
    parser.add_argument(
        "--no-sheets", action="store_true", help="draw no pictures, which is faster"
    )


def run(args: argparse.Namespace) -> int:
    """Classifies all inputs; returns 1 if some could not be read."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("mvitv2_det.weights").setLevel(logging.ERROR)
    from ..recognition.files import classify_files

    process = partial(
        classify_files,
        args.inputs,
        args.output,
        draws=not args.no_sheets,
        weights=args.weights,
        top=args.top,
        num_classes=args.num_classes,
        image_size=args.image_size,
        squash=args.squash,
        batch_size=args.batch_size,
        device=args.device,
        precision=args.precision,
        cuda_graphs=args.cuda_graphs,
    )
    return exit_status(process, args.output)
