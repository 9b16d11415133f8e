"""Prediction on many files: what cannot be read is named, and no interrupt loses results."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from tqdm import tqdm

from ..errors import UserError, naming_unwritable, one_line
from .image_predictor import Found, ImagePredictor, Prepared, batches
from .inputs import Source

_SECONDS_BETWEEN_LINES = 10.0  # of progress, in a log file


def predict_sources(
    sources: Sequence[Source],
    predictor: ImagePredictor[Prepared, Found],
    output: Path,
    write: Callable[[Source, int | None, Any, Found], None],
) -> int:
    """Predicts on all sources and names those that cannot be read.

    Args:
        sources: images and videos.
        predictor: finds something in them.
        output: folder that ``write`` writes to, for errors.
        write: called with each source, the number of the frame (None of an image), the (H, W, 3)
            RGB image (or what the predictor reads files as), and what was found in it.

    Returns:
        the number of sources that could not be read.

    Raises:
        UserError: it cannot go on.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, between two calls of ``write``.
    """
    failed: list[Source] = []
    with (
        naming_unwritable(output),
        progress(sum(source.count() for source in sources), "image") as bar,
        stop_signals() as stopped,
    ):

        def report(source: Source, error: UserError) -> None:
            failed.append(source)
            bar.write(f"error: {one_line(error)}", file=sys.stderr)

        predictor.should_stop = stopped.is_set
        readable = _read(sources, predictor, report)
        for batch in batches(readable, predictor.batch_size):
            found = predictor.infer([prepared for *_, prepared in batch])
            for (source, frame, image, _), result in zip(batch, found, strict=True):
                write(source, frame, image, result)
                bar.update()
                if stopped.is_set():
                    raise KeyboardInterrupt
    return len(failed)


def _read(
    sources: Sequence[Source],
    predictor: ImagePredictor[Prepared, Found],
    report: Callable[[Source, UserError], None],
) -> Iterator[tuple[Source, int | None, Any, Prepared]]:
    """Yields source, frame number, image and model input of all that can be read."""
    for source in sources:
        try:
            for number, image in enumerate(source.images(predictor.read_file)):
                frame = number if source.is_video else None
                yield source, frame, image, predictor.prepare(image, str(source.path))
        except UserError as error:
            report(source, error)


@contextmanager
def stop_signals() -> Iterator[Event]:
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


def progress(total: int, unit: str, *, is_part: bool = False) -> tqdm:
    """A bar, or lines in a log file, of what is done; one of a part vanishes when that is done."""
    is_terminal = sys.stderr.isatty()
    interval = 0.1 if is_terminal else _SECONDS_BETWEEN_LINES
    return tqdm(
        total=total,
        unit=unit,
        mininterval=interval,
        maxinterval=interval,
        leave=not is_part,
        disable=is_part and total == 1,
        # A bar below another moves the cursor, which a file shows as signs.
        position=None if is_terminal else 0,
    )
