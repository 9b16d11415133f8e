"""Exports a backbone, a detector or a classifier to a file that runs without this project.

    mvitv2-det export --config CONFIG --weights W --part backbone --format onnx \\
        --output backbone.onnx --dynamic
    mvitv2-det export --config CONFIG --weights W --part detector --format torchscript \\
        --output detector.pt --image-size 800 1216 --check-image photo.jpg
    mvitv2-det export --weights W --part classifier --format onnx --output classifier.onnx
    mvitv2-det export --weights CLIPS --part classifier --format onnx --output c.onnx --frames 32

CONFIG is a file, or the name of a config of this project; the config.yaml that training has saved
knows the classes of your own data. A backbone is exported with its FPN and takes normalised images
(B, 3, H, W); a detector takes one image (3, H, W), 0 to 255, and gives boxes, classes, scores and
the masks' probabilities inside of the boxes. torch_export is not for detectors. A classifier needs
no config and no Detectron2: it takes any number of normalised images (B, 3, H, W), or clips
(B, 3, T, H, W), and gives logits (B, classes).

The file's metadata hold its classes and preprocessing, as json; of a detector or a backbone,
mvitv2_det.exported_input.ExportedInput reads it and makes the input of an image.

The file is read again and compared with the model before this says that it has succeeded.
"""

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, naming_unwritable
from .entry import add_config_arguments

if TYPE_CHECKING:
    from torch import Tensor

    from ..recognition.description import Input


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--config", help="file or name of a LazyConfig; not of a classifier")
    parser.add_argument(
        "--weights",
        required=True,
        help="a name of mvitv2-det models, a path, a URL, detectron2://…, timm://…",
    )
    parser.add_argument("--part", required=True, metavar="{backbone,detector,classifier}")
    parser.add_argument("--format", required=True, metavar="{torch_export,onnx,torchscript}")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="{fp32,int8}",
        help="int8 is for onnx: the weights of linear layers, for files of less than half the "
        "size; this says by how much the outputs change (default: fp32)",
    )
    parser.add_argument(
        "--image-size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images to trace with, and without --dynamic of all images (default: 512 640; "
        "of a classifier, that of its training)",
    )
    parser.add_argument("--dynamic", action="store_true", help="take images of any size")
    parser.add_argument(
        "--frames", type=int, help="of the clips (default: those of the classifier's training)"
    )
    parser.add_argument(
        "--check-image",
        action="append",
        default=[],
        metavar="IMAGE",
        help="compare on this image, or video of a classifier of clips, instead of noise; may be "
        "repeated",
    )
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Exports, and says how near the file is to the model."""
    if not args.output.parent.is_dir():
        raise UserError(f"--output: there is no folder {args.output.parent}")
    from ..export import check_part_and_format, describe, export_model

    # Exporters and loading log what they do; this command says in one line what is wrong.
    for name in ("torch", "mvitv2_det.weights"):
        logging.getLogger(name).setLevel(logging.ERROR)
    check_part_and_format(args.part, args.format, args.precision)
    read = _read_classifier if args.part == "classifier" else _read_by_config
    with naming_unwritable(args.output):
        comparison = export_model(
            file=args.output,
            part=args.part,
            format=args.format,
            dynamic=args.dynamic,
            precision=args.precision,
            **read(args),
        )
    sizes = describe(comparison.sizes)
    found = "" if comparison.instances is None else f" with {comparison.instances} instances"
    print(
        f"{args.output}: the {args.part} as {args.format}, largest relative error "
        f"{comparison.error:.1e} on images of {sizes}{found}"
    )
    if comparison.quantized is not None:
        print(_rounding(args.output, args.part, comparison.quantized))
    if comparison.instances == 0:
        print(
            "note: nothing was found in the images compared on; name some where the detector "
            "finds something with --check-image",
            file=sys.stderr,
        )
    return 0


def _rounding(file: Path, part: str, changed: float) -> str:
    """What int8 has changed, in words."""
    size = f"{file.stat().st_size / 1e6:.1f} MB in int8"
    if part == "detector":
        return f"{size}: {changed:.1%} of the instances are found with or without int8 alone"
    return f"{size}: largest relative error {changed:.1e}"


def _read_by_config(args: argparse.Namespace) -> dict[str, Any]:
    """The model of a config, and images to compare on."""
    if args.config is None:
        raise UserError(f"--part {args.part} needs --config")
    if args.frames is not None:
        raise UserError("--frames is of a classifier of clips: give --part classifier")
    from ..export.metadata import metadata_of
    from ..trained import read_config, read_trained

    part = "backbone." if args.part == "backbone" else ""
    cfg = read_config(args.config, args.opts, args.trust)
    model = read_trained(cfg, args.weights, part=part)
    size = tuple(args.image_size or (512, 640))
    images = _read_images(args, size, getattr(model, "input_format", None) or "RGB")
    return {
        "model": model,
        "image_size": size,
        "check_images": images,
        "metadata": metadata_of(cfg, model, args.part, None if args.dynamic else size),
    }


def _read_classifier(args: argparse.Namespace) -> dict[str, Any]:
    """A classifier, what it says of itself, and images to compare on."""
    if args.config is not None or args.opts:
        raise UserError("--part classifier takes no --config and no --opts: its weights are enough")
    from ..recognition.classifier import read_recognizer
    from ..recognition.description import ClipInput

    model, description = read_recognizer(args.weights, of=None)
    changes: dict[str, Any] = {}
    if args.image_size:
        height, width = args.image_size
        if height != width:
            raise UserError(f"a classifier takes squares: --image-size {height} {width} is none")
        changes["size"] = height
    if args.frames is not None:
        if not isinstance(description.input, ClipInput):
            raise UserError(f"--frames is of clips, and weights {args.weights!r} are of images")
        changes["frames"] = args.frames
    input = dataclasses.replace(description.input, **changes)
    description = dataclasses.replace(description, input=input)
    frames = (input.frames,) if isinstance(input, ClipInput) else ()
    content = description.to_dict()
    return {
        "model": model,
        "image_size": (*frames, input.size, input.size),
        "check_images": [_network_input(input, file) for file in args.check_image],
        "metadata": {
            name: json.dumps(content[name], ensure_ascii=False) for name in ("classes", "input")
        },
    }


def _network_input(input: "Input", file: str) -> "Tensor":
    """An image (3, S, S), or the first view of a video (3, T, S, S), as a classifier takes it."""
    from PIL import Image

    from ..predict.images import read_rgb
    from ..recognition.description import ClipInput
    from ..video import open_video

    if not isinstance(input, ClipInput):
        return input.transform()(Image.fromarray(read_rgb(file)))
    with open_video(file) as video:
        return input.test_views(video)[0]


def _read_images(
    args: argparse.Namespace, size: tuple[int, int], channel_order: str
) -> "list[Tensor]":
    """Reads each ``--check-image`` as (3, H, W), 0 to 255, resized to ``size``."""
    import torch
    from detectron2.data.detection_utils import read_image
    from torch.nn.functional import interpolate

    from ..data import naming_unreadable_image

    images = []
    for file in args.check_image:
        with naming_unreadable_image(file):
            image = torch.tensor(read_image(file, channel_order)).permute(2, 0, 1).float()
        images.append(interpolate(image[None], size=size, mode="bilinear")[0])
    return images
