"""Finds instances in images and videos: overlays, and results in COCO's format.

    mvitv2-det predict --config output/RUN/config.yaml --weights output/RUN/model_final.pth \\
        photos/ 'more/**/*.png' clip.mp4 --output found

CONFIG is a file, or the name of a config of this project; the config.yaml that training has saved
knows the classes of your own data. Written into the output folder:

    overlays/      each image or video with what was found drawn over it
    results.json   COCO's results format; each record also with file_name and, of videos, frame
                   and, with --track, the track_id that an instance keeps through the frames
    images.json    the images predicted on, and the categories: the json that results.json refers to

An input that cannot be read is named, and the rest goes on. The exit status is 0; 1 if some input
could not be read; 2 if nothing could be started; 130 after Ctrl-C, which keeps what was found until
then.
"""

import argparse
import logging
import os
from functools import partial
from pathlib import Path

from .entry import add_config_arguments, add_device_arguments, exit_status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the inputs and the options."""
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image, video, folder or quoted pattern"
    )
    parser.add_argument("--config", required=True, help="file or name of a LazyConfig")
    parser.add_argument(
        "--weights",
        required=True,
        help="of a trained detector: a name of mvitv2-det models, a path, a URL, detectron2://…",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder, made if missing")
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        help="instances must score higher (default: 0.5; evaluation takes the config's, 0.05)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        help="images of one size that go through the model together, at most (default: 8)",
    )
    parser.add_argument(
        "--tiles",
        metavar="SIDE[:OVERLAP]",
        help="look at square parts of each image, which large images with small instances need: "
        "such as 1024, which overlap by a quarter, or 1024:128",
    )
    parser.add_argument(
        "--track",
        action="store_true",
        help="follow the instances of videos from frame to frame, by ByteTrack: each has its "
        "number, and in the overlay its colour; needs pip install 'mvitv2_det[track]'",
    )
    add_device_arguments(parser, more="; int8 is of the other runtimes")
    parser.add_argument(
        "--runtime",
        default="torch",
        metavar="{torch,openvino,onnxruntime}",
        help="what computes; the others than torch run on a CPU, after the detector has been "
        "exported once, which is kept beside the weights (default: torch)",
    )
    parser.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="replay the backbone as CUDA graphs, one for each size of images: faster where "
        "images are few at a time and of few sizes",
    )
    parser.add_argument(
        "--no-overlays", action="store_true", help="write the json files alone, which is faster"
    )
    parser.add_argument(
        "--format",
        choices=("coco", "label-studio"),
        default="coco",
        help="label-studio also writes label_studio.json, tasks with predictions to correct, and "
        "label_studio.xml, the interface that they are for",
    )
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Predicts on all inputs; returns 1 if some could not be read."""
    _quieten_libraries()
    from ..predict.files import predict_files

    process = partial(
        predict_files,
        args.inputs,
        args.output,
        draws=not args.no_overlays,
        config=args.config,
        weights=args.weights,
        overrides=args.opts,
        trust=args.trust,
        device=args.device,
        precision=args.precision,
        score_threshold=args.score_threshold,
        batch_size=args.batch_size,
        cuda_graphs=args.cuda_graphs,
        runtime=args.runtime,
        tiles=args.tiles,
        track=args.track,
        label_studio=args.format == "label-studio",
    )
    return exit_status(process, args.output)


def _quieten_libraries() -> None:
    """Silences reports about weights and videos: this command says in one line what is wrong."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("mvitv2_det.weights").setLevel(logging.ERROR)
    logging.getLogger("mvitv2_det.runtimes").setLevel(logging.INFO)
    logging.getLogger("torch").setLevel(logging.ERROR)  # exporters log what they do
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
