"""Videos by OpenCV, from the first frame on, and cameras.

OpenCV's seeking is not exact. So all frames are passed once to count them, without making pixels,
and are read in order.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import Unreadable
from .reading import DEFAULT_FPS, Frame, Video


class OpencvVideo(Video):
    """A video file; see :class:`~mvitv2_det.video.Video`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._capture = _open(str(path), f"video {path}")
        self._next = 0

    @functools.cached_property
    def seconds(self) -> np.ndarray:
        """When each frame is shown, ascending from 0: a float64 (frames,)."""
        capture = _open(str(self.path), f"video {self.path}")
        found = []
        while capture.grab():
            found.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        rate = capture.get(cv2.CAP_PROP_FPS)
        capture.release()
        if not found:
            raise Unreadable(f"video {self.path} has no frame that can be decoded")
        seconds = np.array(found) - found[0]
        if (np.diff(seconds) <= 0).any():  # no times, or those of another order
            seconds = np.arange(len(found)) / (rate if 0 < rate < float("inf") else DEFAULT_FPS)
        return seconds

    def _read(self, indices: np.ndarray) -> Sequence[np.ndarray]:
        if indices[0] < self._next:
            self._capture.release()
            self._capture, self._next = _open(str(self.path), f"video {self.path}"), 0
        found = []
        for index in indices.tolist():
            while self._next <= index:
                if not self._capture.grab():
                    raise Unreadable(f"cannot read frame {index} of video {self.path}")
                self._next += 1
            is_read, pixels = self._capture.retrieve()
            if not is_read:
                raise Unreadable(f"cannot read frame {index} of video {self.path}")
            found.append(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
        return found

    def __iter__(self) -> Iterator[Frame]:
        """Yields all frames."""
        for index, seconds in enumerate(self.seconds.tolist()):
            yield Frame(seconds, self._read(np.array([index]))[0])

    def close(self) -> None:
        """Closes the file."""
        self._capture.release()


def camera_frames(source: str | int) -> Iterator[Frame]:
    """Yields the frames of a camera or stream; see :func:`mvitv2_det.video.read_stream`.

    Times are those at which frames have come.
    """
    name = f"camera {source}" if isinstance(source, int) else f"stream {source}"
    capture, start = _open(source, name), None
    try:
        while True:
            is_read, pixels = capture.read()
            if not is_read:
                break
            now = time.monotonic()
            start = now if start is None else start
            yield Frame(now - start, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    finally:
        capture.release()
    if start is None:
        raise Unreadable(f"{name} gives no frame")


def _open(source: str | int, name: str) -> Any:
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        raise Unreadable(f"cannot read {name}: it is missing, or nothing that OpenCV can decode")
    return capture
