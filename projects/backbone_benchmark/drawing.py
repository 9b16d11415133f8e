#!/usr/bin/env python3
"""Measures which share of prediction is drawing: Mask R-CNN T, 100 instances in each image.

    python projects/backbone_benchmark/drawing.py --threads 1

The weights are random, and so are the instances: their masks are more ragged, and take longer to
draw, than those of a trained model. Results: results/drawing.csv and results/drawing.md.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from mvitv2_det.third_party_warnings import silence_third_party_warnings

silence_third_party_warnings()  # before that which warns is imported

import numpy as np
import torch
from PIL import Image

from mvitv2_det import get_config
from mvitv2_det.engine import build_model
from mvitv2_det.export import noise
from mvitv2_det.predict import outputs
from mvitv2_det.predict.files import predict_files
from mvitv2_det.runtimes import PRECISIONS, TORCH
from projects.common import results as files
from projects.common.timing import cpu_clock

CONFIG = "mask_rcnn_mvitv2_t_3x"
HEIGHT, WIDTH = 480, 640
RESULTS = Path(__file__).parent / "results"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=128, help="(default: 128)")
    parser.add_argument("--runtime", choices=(TORCH, *PRECISIONS), default=TORCH)
    parser.add_argument("--threads", type=int, help="(default: one for each core)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, command: str) -> None:
    """Measures and writes the results."""
    files.check_measurable("cpu", "fp32", images=args.images, threads=args.threads)
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = cpu_clock()
    parts: dict[str, float] = {}
    folder_class: Any = outputs.OutputFolder
    # What draws and saves a picture, and what writes all else of an image, json and RLE.
    folder_class._draw = _timed(folder_class._draw, "drawing", parts, clock)
    folder_class.add = _timed(folder_class.add, "writing, with drawing", parts, clock)
    with TemporaryDirectory() as place:
        folder = Path(place)
        images = folder / "images"
        images.mkdir()
        for number in range(args.images):
            pixels = noise((HEIGHT, WIDTH), seed=number).numpy().astype(np.uint8)
            Image.fromarray(pixels.transpose(1, 2, 0)).save(images / f"{number}.jpg")
        torch.manual_seed(0)
        cfg = get_config(CONFIG)
        cfg.train.device = "cpu"
        torch.save({"model": build_model(cfg).state_dict()}, folder / "weights.pth")
        options = {"config": CONFIG, "weights": folder / "weights.pth", "score_threshold": 0.0}
        start = clock()
        predict_files(
            [str(images)], folder / "found", device="cpu", runtime=args.runtime, **options
        )
        whole = clock() - start
        found = (folder / "found" / outputs.RESULTS).read_text().count("image_id")
    rows = [
        {"part": "drawing and saving pictures", "s": parts["drawing"]},
        {"part": "json and RLE", "s": parts["writing, with drawing"] - parts["drawing"]},
        {"part": "whole", "s": whole},
    ]
    table = [
        {
            "part": row["part"],
            "s": f"{row['s']:.1f}",
            "ms an image": f"{1000 * row['s'] / args.images:.0f}",
            "share": f"{row['s'] / whole:.1%}",
        }
        for row in rows
    ]
    head = {"command": command} | files.describe_machine("cpu")
    head |= {
        "model": f"{CONFIG}, random weights, {args.runtime}",
        "images": f"{args.images} of {WIDTH}×{HEIGHT}, {found / args.images:.1f} instances each",
    }
    args.output.mkdir(parents=True, exist_ok=True)
    files.write_csv(args.output / "drawing.csv", head, table)
    notes = ["With one thread, seconds are those in which the process computed."]
    text = files.markdown("How much of prediction is drawing", head, table, notes)
    (args.output / "drawing.md").write_text(text, "utf-8")
    print(text)


def _timed(
    method: Callable[..., None], name: str, parts: dict[str, float], clock: Callable[[], float]
) -> Callable[..., None]:
    """A method that adds the seconds of its calls to ``parts``."""

    def timed(*arguments: Any) -> None:
        start = clock()
        method(*arguments)
        parts[name] = parts.get(name, 0.0) + clock() - start

    return timed


if __name__ == "__main__":
    sys.exit(files.main("projects/backbone_benchmark/drawing.py", parse, run, None))
