"""Classification of videos: files, folders of frames and streams in; json, csv and pictures out."""

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from threading import Event
from types import TracebackType

import cv2
import numpy as np
from torch import Tensor

from ..errors import UserError, naming_unwritable, one_line
from ..predict.inputs import Source, find_videos
from ..predict.loop import progress, stop_signals
from ..predict.writing import check_writable, distinct_files, replacing
from ..video.reading import DEFAULT_FPS, Frame, open_video, read_stream
from ..video.with_av import require_av
from ..video.writing import write_video
from ..visualize.timeline import Span, boundaries, draw_labels, draw_timeline
from .classifier import Likely, most_likely
from .clip_classifier import ClipClassifier, Moment
from .files import RESULTS, ClassifiedFolder

TIMELINE, TIMELINES, OVERLAYS = "timeline.csv", "timelines", "overlays"

_LABELS = 3  # drawn on a frame, at most
_MOST_OF_A_PICTURE = 20_000  # windows of a timeline: those of a stream go on for ever


@dataclass(frozen=True)
class Windows:
    """Windows that slide over videos; see :meth:`ClipClassifier.watch`.

    Attributes:
        length, stride: in seconds; None for what that method takes.
    """

    length: float | None = None
    stride: float | None = None


def classify_videos(
    inputs: Sequence[str],
    output: Path,
    classifier: ClipClassifier,
    *,
    windows: Windows | None = None,
    overlay: bool = False,
    camera: str | None = None,
    draws: bool = True,
) -> int:
    """Classifies videos, writes and prints what is found; names those that cannot be read.

    Args:
        inputs: files, folders and patterns; see :func:`mvitv2_det.predict.inputs.find_videos`.
        output: folder to write, made if missing; see :class:`VideoFolder`.
        classifier: of clips.
        windows: classify these instead of whole videos; of a camera always.
        overlay: write the videos with their classes drawn on the frames.
        camera: a camera's number, or a stream's address, instead of ``inputs``; see
            :func:`mvitv2_det.video.read_stream`. It is watched until it ends or until Ctrl-C.
        draws: whether to draw sheets and timelines.

    Returns:
        the number of inputs that could not be read.

    Raises:
        UserError: it cannot start or go on; what was found until then is written.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; what was found until then is written.
    """
    if bool(inputs) == (camera is not None):
        raise UserError("name videos or a camera: expected one of the two")
    if camera is None:
        sources = find_videos(inputs)
    else:
        sources, windows = [Source(Path(camera), f"camera_{_plain(camera)}")], windows or Windows()
    if windows is not None:
        classifier.check_window(windows.length, windows.stride)
    if overlay:
        require_av()
    check_writable(output)
    folder = VideoFolder(output, sources, classifier, draws=draws, overlay=overlay, windows=windows)
    failures = 0
    try:
        with (
            naming_unwritable(output),
            folder,
            progress(len(sources), "video") as bar,
            stop_signals() as stopped,
        ):
            for source in sources:
                try:
                    folder.classify(source, stopped, camera)
                except UserError as error:
                    if camera is not None:
                        raise
                    failures += 1
                    bar.write(f"error: {one_line(error)}", file=sys.stderr)
                bar.update()
                if stopped.is_set():
                    raise KeyboardInterrupt
    finally:
        print(folder.table())
        print(f"{output / RESULTS}: classes of {folder.count} {folder.noun}s")
    return failures


class VideoFolder:
    """A context manager that classifies videos and writes the output folder.

    ``results.json`` and the sheets are those of
    :class:`~mvitv2_det.recognition.files.ClassifiedFolder`, with a record for each video, or each
    window of one; the sheets show whole videos. Of windows ``timeline.csv`` has a line for each
    class of each: ``file_name``, ``start``, ``end``, ``place`` from 1 on, ``class``,
    ``category_id``, ``probability``; and ``timelines/NAME.png`` is the picture of a video's.
    ``overlays/NAME.mp4`` is a video with the classes drawn: of a file those of the window whose
    middle is nearest, of a stream the latest that were known.

    Attributes:
        noun: what a record is of.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        classifier: ClipClassifier,
        *,
        draws: bool,
        overlay: bool,
        windows: Windows | None,
    ) -> None:
        """
        Args:
            folder: the folder.
            sources: all that will be classified, so that none is replaced.
            classifier: of clips.
            draws: whether to draw sheets and timelines.
            overlay: whether to draw classes over the videos.
            windows: to classify instead of whole videos.

        Raises:
            UserError: a file would replace an input.
        """
        self._classifier, self._windows, self._draws = classifier, windows, draws
        self.noun = "window" if windows else "video"
        self._folder = folder
        self._written = ClassifiedFolder(
            folder,
            sources,
            classifier.description.classes,
            draws=draws and windows is None,
            noun=self.noun,
        )
        pictures = {source: PurePath(f"{source.name}.png") for source in sources}
        videos = {source: PurePath(source.name).with_suffix(".mp4") for source in sources}
        self._pictures = distinct_files(folder / TIMELINES, pictures)
        self._overlays = distinct_files(folder / OVERLAYS, videos) if overlay else {}
        self._stack = ExitStack()

    @property
    def count(self) -> int:
        """Records that are written."""
        return self._written.images

    def table(self) -> str:
        """Formats the classes of the first videos or windows, one in each row."""
        return self._written.table()

    def __enter__(self) -> "VideoFolder":
        self._stack.enter_context(self._written)
        if self._windows:
            part = self._stack.enter_context(replacing(self._folder / TIMELINE, keeps_part=True))
            file = self._stack.enter_context(open(part, "w", encoding="utf-8", newline=""))
            self._csv = csv.writer(file, lineterminator="\n")
            columns = ("file_name", "start", "end", "place", "class", "category_id", "probability")
            self._csv.writerow(columns)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def classify(self, source: Source, stopped: Event, camera: str | None = None) -> None:
        """Classifies a video and writes what is found.

        Args:
            source: of the video.
            stopped: ends it early.
            camera: what to watch instead of a file.

        Raises:
            UserError: it cannot be read.
            OSError: a file cannot be written.
        """
        if camera is not None:
            with self._timeline(source) as moments:
                frames = self._watch(source, read_stream(camera), None, stopped, moments, live=True)
                self._write_stream(source, frames)
            return
        with open_video(source.path) as video:
            duration, fps = video.duration, video.fps
            if self._windows is None:
                views = self._classifier.prepare(video)
                likely = self._found(views)
                self._written.add(source, None, self._montage(views), likely)
                spans = [Span(0.0, duration, _by_name(likely))]
            else:
                with self._timeline(source) as moments:
                    for _ in self._watch(source, video, duration, stopped, moments):
                        pass
                spans = [_span(moment) for moment in moments]
            if source in self._overlays and spans and not stopped.is_set():
                self._write_overlay(source, _labelled(video, spans, stopped), fps)

    def _found(self, views: Tensor) -> list[Likely]:
        classifier = self._classifier
        found = classifier.infer([views])
        return most_likely(found, classifier.description.classes, classifier.top)[0]

    def _watch(
        self,
        source: Source,
        frames: Iterable[Frame],
        duration: float | None,
        stopped: Event,
        moments: list[Moment],
        live: bool = False,
    ) -> Iterator[tuple[Frame, Sequence[tuple[str, float]]]]:
        """Writes what is found in windows; yields each frame with the classes known by then."""
        windows = self._windows or Windows()
        labels: list[tuple[str, float]] = []
        for frame, found in self._classifier.watch(
            frames, windows.length, windows.stride, duration=duration
        ):
            for moment in found:
                self._add(source, moment)
                moments.append(moment)
                labels = _labels(_by_name(moment.classes))
                if live:
                    best = moment.classes[0]
                    when = f"{moment.start:.1f}–{moment.end:.1f} s"
                    print(f"{when}  {best.name}  {best.probability:.0%}", flush=True)
            if live:
                del moments[:-_MOST_OF_A_PICTURE]
            if frame is not None:
                yield frame, labels
            if stopped.is_set():
                return

    def _add(self, source: Source, moment: Moment) -> None:
        self._written.add(source, (moment.start, moment.end), None, moment.classes)
        for place, likely in enumerate(moment.classes, 1):
            times = (f"{moment.start:.3f}", f"{moment.end:.3f}")
            probability = f"{likely.probability:.6f}"
            self._csv.writerow(
                (source.name, *times, place, likely.name, likely.number, probability)
            )

    @contextmanager
    def _timeline(self, source: Source) -> Iterator[list[Moment]]:
        """Gives a list to gather a video's windows in; draws them, also after an interrupt."""
        moments: list[Moment] = []
        try:
            yield moments
        finally:
            if moments and self._draws:
                file = self._pictures[source]
                file.parent.mkdir(parents=True, exist_ok=True)
                with replacing(file, keeps_part=False) as part:
                    draw_timeline([_span(moment) for moment in moments], part, source.name)

    def _montage(self, views: Tensor) -> np.ndarray:
        """(2 S, 2 S, 3) RGB, uint8: four frames of a middle view (3, T, S, S), as it is seen."""
        view = views[len(views) // 2].permute(1, 2, 3, 0).numpy()
        input = self._classifier.input
        chosen = view[np.linspace(0, len(view) - 1, 4).round().astype(int)]
        seen = (255 * (chosen * input.std + input.mean)).round().clip(0, 255).astype(np.uint8)
        return np.vstack([np.hstack(list(seen[:2])), np.hstack(list(seen[2:]))])

    def _write_stream(
        self, source: Source, frames: Iterator[tuple[Frame, Sequence[tuple[str, float]]]]
    ) -> None:
        if source in self._overlays:
            self._write_overlay(source, frames, DEFAULT_FPS)
        else:
            for _ in frames:
                pass

    def _write_overlay(
        self,
        source: Source,
        frames: Iterable[tuple[Frame, Sequence[tuple[str, float]]]],
        fps: float,
    ) -> None:
        file = self._overlays[source]
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, keeps_part=True) as part:
            write_video(part, _one_size(_at_rate(frames, fps)), fps)


def _labelled(
    frames: Iterable[Frame], spans: Sequence[Span], stopped: Event
) -> Iterator[tuple[Frame, Sequence[tuple[str, float]]]]:
    """Each frame with the classes of the nearest window."""
    inner = boundaries(spans)[1:-1]
    labels = [_labels(span.probabilities) for span in spans]
    for frame in frames:
        if stopped.is_set():
            return
        yield frame, labels[int(np.searchsorted(inner, frame.seconds, side="right"))]


def _at_rate(
    frames: Iterable[tuple[Frame, Sequence[tuple[str, float]]]], fps: float
) -> Iterator[np.ndarray]:
    """Draws the frames that are shown at multiples of 1 / fps: a rate that varies is made even."""
    shown, count = None, 0
    for frame, labels in frames:
        # Half a step: times are rounded, and a frame of an even rate must not be left out.
        while shown is not None and count / fps < frame.seconds - 0.5 / fps:
            yield shown
            count += 1
        shown = draw_labels(frame.pixels, labels)
    if shown is not None:
        yield shown


def _one_size(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Resizes all frames (H, W, 3) to the size of the first."""
    size = None
    for frame in frames:
        size = size or frame.shape[1::-1]
        yield frame if frame.shape[1::-1] == size else cv2.resize(frame, size)


def _span(moment: Moment) -> Span:
    return Span(moment.start, moment.end, _by_name(moment.classes))


def _by_name(classes: Sequence[Likely]) -> dict[str, float]:
    """Probabilities by name; those of classes of one name are added."""
    found: dict[str, float] = {}
    for likely in classes:
        found[likely.name] = found.get(likely.name, 0.0) + likely.probability
    return found


def _labels(probabilities: Mapping[str, float]) -> list[tuple[str, float]]:
    return list(probabilities.items())[:_LABELS]


def _plain(text: str) -> str:
    """An address as a part of a file's name."""
    return "".join(char if char.isalnum() else "_" for char in text)[-60:]
