"""Windows that slide over a video whose frames come one after the other.

No more is held than the frames that the open windows have asked for, so that a video may be of any
length, and a stream without an end.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Generic, TypeVar

import numpy as np

from .reading import ROUNDING, Frame
from .sampling import clip_times, span, uniform_starts

Kept = TypeVar("Kept")
_NEGLIGIBLE = 1e-6  # seconds


def window_starts(length: float, stride: float, duration: float | None = None) -> Iterator[float]:
    """Times at which windows start, ascending from 0.

    Args:
        length: of a window, in seconds.
        stride: seconds from one start to the next.
        duration: of the video: the last window ends with it. None goes on without an end.
    """
    if duration is None:
        yield from (stride * number for number in count())
        return
    last = max(duration - length, 0.0)
    number = 0
    while stride * number < last - _NEGLIGIBLE:
        yield stride * number
        number += 1
    yield last


def window_times(length: float, frames: int, rate: float, sampling: str, clips: int) -> np.ndarray:
    """(clips, T) seconds, from a window's start on, of the frames that its clips show.

    A window of segments has one clip, a frame from the middle of each. Otherwise it has as many
    T × τ clips as cover it, though not more than are given, spread as over a video.

    Args:
        length: of the window, in seconds; at least that of a clip, but for segments.
        frames, rate, sampling: as in :func:`mvitv2_det.video.clips.random_clip`.
        clips: K, at most.
    """
    if sampling == "segments":
        return (np.arange(frames)[None] + 0.5) * (length / frames)
    of_clip = span(frames, rate)
    covering = int(np.ceil(length / of_clip - _NEGLIGIBLE))
    starts = uniform_starts(length, of_clip, max(1, min(clips, covering)))
    return np.stack([clip_times(start, frames, rate) for start in starts])


class SlidingWindows(Generic[Kept]):
    """Gathers for each window the frames that are shown at its times.

    A frame is shown from its time to that of the next one, the last one for ever. Windows are given
    in order, each as its start and a list of frames in the order of ``times``.
    """

    def __init__(
        self,
        starts: Iterable[float],
        length: float,
        times: np.ndarray,
        keep: Callable[[np.ndarray], Kept],
    ) -> None:
        """
        Args:
            starts: of the windows, in seconds, ascending; see :func:`window_starts`.
            length: of a window, in seconds.
            times: (n,) seconds from a window's start on.
            keep: makes what is held of a frame (H, W, 3), once at most.
        """
        self._starts = iter(starts)
        self._next_start = next(self._starts, None)
        self._length, self._keep = length, keep
        self._order = np.argsort(times, kind="stable")
        self._times = times[self._order]
        self._open: list[tuple[float, list[Kept]]] = []
        self._last: Frame | None = None
        self._given, self._gap = 0, 0.0

    def push(self, frame: Frame) -> list[tuple[float, list[Kept]]]:
        """Takes the next frame; returns the windows that are complete now."""
        if self._last is not None:
            self._show_until(frame.seconds)
            self._gap = frame.seconds - self._last.seconds
        self._last = frame
        return self._complete()

    def finish(self, duration: float = 0.0) -> list[tuple[float, list[Kept]]]:
        """Ends the video; returns the windows that lie in it and have not been given yet.

        The first window is given even if the video ends before it does.

        Args:
            duration: of the video, in seconds, where it is known; else the last frame is taken to
                be shown as long as the one before.
        """
        if self._last is None:
            return []
        end = max(duration, self._last.seconds + self._gap) + _NEGLIGIBLE
        self._show_until(float("inf"), begun_by=self._last.seconds + ROUNDING)
        done = self._complete()
        return [
            window
            for number, window in enumerate(done, self._given - len(done))
            if number == 0 or window[0] + self._length <= end
        ]

    def _show_until(self, end: float, begun_by: float = float("inf")) -> None:
        """Gives the last frame to all times before ``end`` that have none yet."""
        assert self._last is not None
        while self._next_start is not None:
            first = self._next_start + self._times[0] + ROUNDING
            if not (first < end and self._next_start <= begun_by):
                break
            self._open.append((self._next_start, []))
            self._next_start = next(self._starts, None)
        kept = None
        for start, frames in self._open:
            shown = int(np.searchsorted(self._times + (start + ROUNDING), end, side="left"))
            if shown > len(frames):
                kept = self._keep(self._last.pixels) if kept is None else kept
                frames.extend([kept] * (shown - len(frames)))

    def _complete(self) -> list[tuple[float, list[Kept]]]:
        done = []
        while self._open and len(self._open[0][1]) == len(self._order):
            start, frames = self._open.pop(0)
            # frames are in the order of time; the times may have another.
            placed = np.empty(len(frames), dtype=np.int64)
            placed[self._order] = np.arange(len(frames))
            done.append((start, [frames[place] for place in placed]))
        self._given += len(done)
        return done
