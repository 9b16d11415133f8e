"""Finds instances in images and videos: overlays, and results in COCO's format.

    python -m mvitv2_det.predict --config output/RUN/config.yaml \\
        --weights output/RUN/model_final.pth photos/ 'more/**/*.png' clip.mp4 --output found

CONFIG is a file, or the name of a config of this project; the config.yaml that training has saved
knows the classes of one's own data. Written into the output folder:

    overlays/      each image or video with what was found drawn over it
    results.json   COCO's results format; each record also with file_name and, of videos, frame
    images.json    what was predicted on, and the categories: the json that results.json goes with

An input that cannot be read is named, and the rest goes on. The exit status is 0, 1 where some
input could not be read, 2 where nothing could be started, 130 after Ctrl-C, which keeps what was
found until then.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import UserError, one_line
from .inputs import Source, find_sources
from .outputs import RESULTS, OutputFolder, Predicted, check_writable
from .predictor import PRECISIONS, Predictor, batches

_SECONDS_BETWEEN_LINES = 10.0  # of progress, in a log file


def predict(args: argparse.Namespace) -> int:
    """Predicts on all inputs; returns how many could not be read.

    Raises:
        UserError: it cannot start, or not go on; what was found until then is written.
    """
    sources = find_sources(args.inputs)
    check_writable(args.output)
    predictor = Predictor(
        args.config,
        args.weights,
        overrides=args.opts,
        device=args.device,
        precision=args.precision,
        score_threshold=args.score_threshold,
        batch_size=args.batch_size,
    )
    failed: list[Source] = []
    folder = OutputFolder(args.output, sources, predictor.classes, draws=not args.no_overlays)
    try:
        with _progress(sources) as bar, _stop_signals() as stopped, folder:

            def report(source: Source, error: UserError) -> None:
                failed.append(source)
                bar.write(f"error: {one_line(error)}", file=sys.stderr)

            readable = _read(sources, predictor, report)
            for batch in batches(readable, predictor.batch_size):
                found = predictor.infer([model_input for *_, model_input in batch])
                for (source, frame, image, _), instances in zip(batch, found, strict=True):
                    folder.add(Predicted(source, frame, image, instances))
                    bar.update()
                    if stopped.is_set():
                        raise KeyboardInterrupt
    finally:
        print(
            f"{args.output / RESULTS}: {folder.instances} instances in {folder.images} images or "
            f"frames"
        )
    return len(failed)


def _read(
    sources: list[Source], predictor: Predictor, report: Callable[[Source, UserError], None]
) -> Iterator[tuple[Source, int | None, np.ndarray, dict[str, Any]]]:
    """Source, frame number, (H, W, 3) RGB image and model input of all that can be read."""
    for source in sources:
        try:
            for number, image in enumerate(source.images()):
                frame = number if source.is_video else None
                yield source, frame, image, predictor.prepare(image, str(source.path))
        except UserError as error:
            report(source, error)


@contextmanager
def _stop_signals() -> Iterator[Event]:
    """An event that Ctrl-C or SIGTERM sets, so that an image or frame is not cut in its middle.

    Python's own KeyboardInterrupt would also be lost where it meets a callback of matplotlib's. The
    second signal raises it all the same.
    """
    stopped = Event()

    def stop(*_: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _progress(sources: list[Source]) -> tqdm:
    interval = 0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
    total = sum(source.count() for source in sources)
    return tqdm(total=total, unit="image", mininterval=interval, maxinterval=interval)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mvitv2_det.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image, video, folder or quoted pattern"
    )
    parser.add_argument("--config", required=True, help="file or name of a LazyConfig")
    parser.add_argument(
        "--weights", required=True, help="of a trained detector: a path, a URL, detectron2://…"
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
        help="images that go through the model together where they are of one size (default: 8)",
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument(
        "--no-overlays", action="store_true", help="write the json files alone, which is faster"
    )
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the config"
    )
    return parser.parse_intermixed_args(arguments)  # inputs before and after options


def main(arguments: list[str] | None = None) -> int:
    """Predicts; returns the exit status."""
    args = parse(arguments)
    _quieten_libraries()
    try:
        failures = predict(args)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write {error.filename or args.output}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {args.output} holds what was found until then", file=sys.stderr)
        return 130
    if failures:
        print(f"error: {failures} of the inputs could not be read, see above", file=sys.stderr)
    return 1 if failures else 0


def _quieten_libraries() -> None:
    """What is wrong with weights or videos is said in one line, by this program."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("mvitv2_det.weights").setLevel(logging.ERROR)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")


if __name__ == "__main__":
    sys.exit(main())
