"""Prediction on files: images and videos in, overlays and results out."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import UserError, naming_unwritable, one_line
from .inputs import Source, find_sources
from .outputs import RESULTS, OutputFolder, Predicted, check_writable
from .predictor import Predictor, batches

_SECONDS_BETWEEN_LINES = 10.0  # of progress, in a log file


def predict_files(
    inputs: Sequence[str], output: Path, *, draws: bool = True, **predictor_options: Any
) -> int:
    """Predicts on all inputs and writes what is found; names inputs that cannot be read.

    Args:
        inputs: files, folders and patterns; see :func:`mvitv2_det.predict.inputs.find_sources`.
        output: folder to write, made if missing; see
            :class:`mvitv2_det.predict.outputs.OutputFolder`.
        draws: whether to write overlays.
        predictor_options: keywords of :class:`mvitv2_det.Predictor`.

    Returns:
        the number of inputs that could not be read.

    Raises:
        UserError: it cannot start or go on; what was found until then is written.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; what was found until then is written.
    """
    sources = find_sources(inputs)
    check_writable(output)
    predictor = Predictor(**predictor_options)
    failed: list[Source] = []
    folder = OutputFolder(output, sources, predictor.classes, draws=draws)
    try:
        with (
            naming_unwritable(output),
            _progress(sources) as bar,
            _stop_signals() as stopped,
            folder,
        ):

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
            f"{output / RESULTS}: {folder.instances} instances in {folder.images} images or frames"
        )
    return len(failed)


def _read(
    sources: list[Source], predictor: Predictor, report: Callable[[Source, UserError], None]
) -> Iterator[tuple[Source, int | None, np.ndarray, dict[str, Any]]]:
    """Yields source, frame number, (H, W, 3) RGB image and model input of all that can be read."""
    for source in sources:
        try:
            for number, image in enumerate(source.images()):
                frame = number if source.is_video else None
                yield source, frame, image, predictor.prepare(image, str(source.path))
        except UserError as error:
            report(source, error)


@contextmanager
def _stop_signals() -> Iterator[Event]:
    """Gives an event that Ctrl-C or SIGTERM sets, so that no image or frame is half written.

    Python's own KeyboardInterrupt could also get lost in a callback of matplotlib. A second signal
    raises it all the same.
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
