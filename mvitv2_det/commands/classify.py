"""Names the most probable classes of images and videos: a table, a json file and pictures.

    mvitv2-det classify photos/ 'more/**/*.png' --weights output/RUN/model_final.pth --output found
    mvitv2-det classify photo.jpg --weights timm://mvitv2_tiny --output found
    mvitv2-det classify clips/ --weights output/VIDEO_RUN/model_final.pth --output found
    mvitv2-det classify long.mp4 --window 4 --stride 2 --overlay --weights W --output found
    mvitv2-det classify --camera 0 --overlay --weights W --output found

A checkpoint that training has saved knows its network, its classes and its preprocessing. Released
weights are recognised by their shapes and get the names of ImageNet or Kinetics-400; --num-classes
1000 takes the classes of ImageNet-1K from weights of ImageNet-21K. It needs no Detectron2. Written
into the output folder:

    results.json       a record for each: file_name, classes, category_ids, probabilities; of a
                       window also start and end, in seconds
    sheet_1.png        the images or whole videos, 30 on a sheet, with their classes
    timeline.csv       of windows, a line for each class of each
    timelines/*.png    of windows, a picture for each video
    overlays/*.mp4     with --overlay, the videos with their classes drawn on them

Weights of clips take videos: files, folders of these, folders of frames (30 a second), and folders
of such folders. A video is classified as a whole, by the clips and crops of its training's test, or
with --window in windows that slide over it, which are as many as it is long. A camera or stream is
watched until it ends or Ctrl-C.

What cannot be read is named, and the rest goes on. The exit status is 0; 1 if some input could not
be read; 2 if nothing could be started; 130 after Ctrl-C, which keeps what was found until then.
"""

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from .entry import add_device_arguments, exit_status

_OF_VIDEOS = ("frames", "rate", "clips", "crops", "window", "stride", "overlay", "camera")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the inputs and the options."""
    parser.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="image or video, folder, quoted pattern"
    )
    parser.add_argument(
        "--weights",
        required=True,
        help="of a classifier: a name of mvitv2-det models, a path, a URL, detectron2://…, timm://…",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder, made if missing")
    parser.add_argument("--top", type=int, default=5, help="classes of each (default: 5)")
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
        "--batch-size", type=int, default=8, help="images or clips at once, at most (default: 8)"
    )
    add_device_arguments(parser)
    parser.add_argument(
        "--cuda-graphs", action="store_true", help="replay the network as CUDA graphs"
    )
    parser.add_argument(
        "--no-sheets", action="store_true", help="draw no pictures, which is faster"
    )
    clips = parser.add_argument_group("of videos")
    clips.add_argument("--frames", type=int, help="of a clip (default: those of training)")
    clips.add_argument("--rate", type=float, help="30ths of a second between frames of a clip")
    clips.add_argument("--clips", type=int, help="spread over a whole video")
    clips.add_argument("--crops", type=int, metavar="{1,3}", help="of each clip")
    clips.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="classify windows that slide over the videos (of a camera by default those of a clip)",
    )
    clips.add_argument(
        "--stride", type=float, metavar="SECONDS", help="from window to window (default: --window)"
    )
    clips.add_argument("--overlay", action="store_true", help="write videos with their classes")
    clips.add_argument(
        "--camera", metavar="SOURCE", help="a camera's number, or a stream's address"
    )


def run(args: argparse.Namespace) -> int:
    """Classifies all inputs; returns 1 if some could not be read."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("mvitv2_det.weights").setLevel(logging.ERROR)
    from ..recognition.classifier import kind_of
    from ..weights.sources import read_source

    checkpoint = read_source(args.weights)
    options: dict[str, Any] = {
        "weights": checkpoint,
        "top": args.top,
        "num_classes": args.num_classes,
        "image_size": args.image_size,
        "squash": args.squash,
        "batch_size": args.batch_size,
        "device": args.device,
        "precision": args.precision,
        "cuda_graphs": args.cuda_graphs,
    }
    run = _run_videos if kind_of(checkpoint) == "video" else _run_images
    return run(args, options)


def _run_images(args: argparse.Namespace, options: dict[str, Any]) -> int:
    from ..recognition.classifier import Classifier
    from ..recognition.files import classify_files

    given = [name for name in _OF_VIDEOS if getattr(args, name)]
    if given:
        raise UserError(
            f"--{given[0]} is of videos, and checkpoint {args.weights!r} is of images: expected "
            f"weights of clips"
        )
    if not args.inputs:
        raise UserError("name an image, a folder or a quoted pattern")
    process = partial(
        classify_files, args.inputs, args.output, Classifier(**options), draws=not args.no_sheets
    )
    return exit_status(process, args.output)


def _run_videos(args: argparse.Namespace, options: dict[str, Any]) -> int:
    from ..recognition.clip_classifier import ClipClassifier
    from ..recognition.clip_files import Windows, classify_videos

    options |= {name: getattr(args, name) for name in ("frames", "rate", "clips", "crops")}
    windows = None
    if args.window is not None or args.camera is not None:
        windows = Windows(args.window, args.stride)
    elif args.stride is not None:
        raise UserError("--stride is of windows: give --window, too")
    process = partial(
        classify_videos,
        args.inputs,
        args.output,
        ClipClassifier(**options),
        windows=windows,
        overlay=args.overlay,
        camera=args.camera,
        draws=not args.no_sheets,
    )
    return exit_status(process, args.output)
