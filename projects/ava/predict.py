#!/usr/bin/env python3
"""Finds the persons in videos and names what each of them does.

    python projects/ava/predict.py clip.mp4 --output out --actions run/model_final.pth \\
        --config mask_rcnn_mvitv2_t_3x --weights mask_rcnn.pth

The detector of --config and --weights, one of this project's, finds persons once a second; the
network of --actions, which projects/ava has trained, names their actions from the clip around that
time. The output has, for each video, NAME.mp4 with boxes and actions drawn, and NAME.json.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for projects and mvitv2_det

from mvitv2_det.third_party_warnings import silence_third_party_warnings

silence_third_party_warnings()  # before that which warns is imported

import numpy as np

from mvitv2_det.commands.entry import exit_status
from mvitv2_det.errors import UserError, naming_unwritable, one_line
from mvitv2_det.predict.inputs import find_sources
from mvitv2_det.predict.predictor import Predictor
from mvitv2_det.predict.writing import check_writable
from mvitv2_det.recognition.action_finder import ActionFinder
from mvitv2_det.video import Video, open_video
from mvitv2_det.video.key_frames import VIEWS
from mvitv2_det.video.writing import write_video
from mvitv2_det.visualize.persons import draw_persons

MOST_LABELS = 5  # that are drawn on a person

# Frames (H, W, 3) to boxes (N, 4) in pixels and scores (N,) of persons.
Detect = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Doing(NamedTuple):
    """The persons at a time of a video.

    Attributes:
        seconds: from its first frame on.
        boxes: (N, 4) left, top, right, bottom in pixels.
        scores: (N,) of the detector.
        probabilities: (N, C) of the actions.
    """

    seconds: float
    boxes: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray


def person_detector(predictor: Predictor, name: str) -> Detect:
    """Makes a detector of persons of one of instances.

    Args:
        predictor: of any classes.
        name: of the class that is a person.

    Raises:
        UserError: it has no such class.
    """
    names = list(predictor.classes.names)
    if name not in names:
        raise UserError(
            f"the detector has no class {name!r} but {', '.join(names[:10])}"
            f"{', …' if len(names) > 10 else ''}: name its persons with --person"
        )

    def detect(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = predictor(frame)
        found = found[found.pred_classes == names.index(name)]
        return found.pred_boxes.tensor.numpy(), found.scores.numpy()

    return detect


def find_actions(
    video: Video, detect: Detect, finder: ActionFinder, every: float = 1.0
) -> Iterator[Doing]:
    """Yields who does what at times of a video, so far apart; the first is half of that.

    Raises:
        UserError: a frame cannot be decoded.
    """
    times = np.arange(every / 2, video.duration, every).tolist() or [video.duration / 2]
    height, width = video.size
    for first in range(0, len(times), finder.batch_size):
        some = times[first : first + finder.batch_size]
        detected = [detect(video.at_seconds([seconds])[0]) for seconds in some]
        shares = [boxes / [width, height, width, height] for boxes, _ in detected]
        for seconds, found, actions in zip(
            some, detected, finder(video, some, shares), strict=True
        ):
            yield Doing(seconds, *found, actions)


def draw_actions(
    video: Video, found: Sequence[Doing], classes: Sequence[str], least: float
) -> Iterator[np.ndarray]:
    """Yields all frames, each with the persons of the time that is nearest.

    Args:
        video: an open one.
        found: of some times.
        classes: names of the actions.
        least: probability of what is written.
    """
    times = np.array([each.seconds for each in found])
    for frame in video:
        nearest = found[int(np.abs(times - frame.seconds).argmin())]
        labels = [
            [f"{name} {value:.2f}" for name, value in _likely(row, classes, least).items()][
                :MOST_LABELS
            ]
            for row in nearest.probabilities
        ]
        yield draw_persons(frame.pixels, nearest.boxes, labels)


def _likely(row: np.ndarray, classes: Sequence[str], least: float) -> dict[str, float]:
    """Names and probabilities of actions, the most probable first."""
    return {
        classes[k]: round(float(row[k]), 4)
        for k in np.argsort(-row, kind="stable").tolist()
        if row[k] >= least
    }


def _records(found: Sequence[Doing], classes: Sequence[str], least: float) -> list[dict]:
    return [
        {
            "seconds": round(each.seconds, 3),
            "box": [round(side, 2) for side in box.tolist()],
            "score": round(float(score), 4),
            "actions": _likely(row, classes, least),
        }
        for each in found
        for box, score, row in zip(each.boxes, each.scores, each.probabilities, strict=True)
    ]


def predict(args: argparse.Namespace) -> int:
    """Works through all videos; returns the number of those that could not be read.

    Raises:
        UserError: an option is wrong, or nothing can be written.
    """
    for name in ("score", "least"):
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name} must be in [0, 1], got {getattr(args, name):g}")
    if not args.every > 0:
        raise UserError(f"--every must be a positive number of seconds, got {args.every:g}")
    sources = find_sources(args.inputs)
    for source in sources:
        if not source.is_video:
            raise UserError(f"{source.path} is no video: what persons do is seen in videos alone")
    check_writable(args.output)
    common = {
        "device": args.device,
        "precision": args.precision,
        "batch_size": args.batch_size,
    }
    finder = ActionFinder(args.actions, view=args.view, **common)
    predictor = Predictor(args.config, args.weights, score_threshold=args.score, **common)
    detect = person_detector(predictor, args.person)
    failures = 0
    for source in sources:
        try:
            with open_video(source.path) as video:
                found = list(find_actions(video, detect, finder, args.every))
                records = _records(found, finder.classes, args.least)
                file = args.output / Path(source.name).with_suffix(".json")
                with naming_unwritable(file):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(records, ensure_ascii=False, indent=1))
                frames = draw_actions(video, found, finder.classes, args.least)
                write_video(file.with_suffix(".mp4"), frames, video.fps)
        except UserError as error:
            print(f"error: {source.name}: {error}", file=sys.stderr)
            failures += 1
            continue
        persons = sum(len(each.boxes) for each in found)
        print(f"{source.name}: {persons} persons at {len(found)} times, {file}")
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 2 where there is something to put right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="VIDEO", help="video, folder, quoted pattern")
    parser.add_argument("--output", required=True, type=Path, help="folder, made if missing")
    parser.add_argument("--actions", required=True, help="checkpoint of projects/ava")
    parser.add_argument("--config", required=True, help="of the detector: a file or a name")
    parser.add_argument("--weights", required=True, help="of the detector")
    parser.add_argument("--person", default="person", help="the detector's class (default: person)")
    parser.add_argument(
        "--score", type=float, default=0.8, help="persons score at least this (default: 0.8)"
    )
    parser.add_argument(
        "--least", type=float, default=0.3, help="actions are this probable (default: 0.3)"
    )
    parser.add_argument(
        "--every", type=float, default=1.0, help="seconds from one look to the next (default: 1)"
    )
    parser.add_argument("--view", default="full", help=f"{' or '.join(VIEWS)} (default: full)")
    parser.add_argument(
        "--batch-size", type=int, default=8, help="frames or clips at once, at most (default: 8)"
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--precision", default="fp32", metavar="{fp32,fp16,bf16}")
    args = parser.parse_args(arguments)
    logging.getLogger("mvitv2_det.weights").setLevel(logging.ERROR)
    try:
        return exit_status(lambda: predict(args), args.output)
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
