"""Frames of videos by their number or their time, whatever decodes them.

=============== ===========================================================================
backend         what it is
=============== ===========================================================================
``av``          PyAV, the default: ``pip install 'mvitv2_det[video]'`` brings it with FFmpeg
``torchcodec``  where it and a system's FFmpeg are installed; for MP4 and Matroska alone
``opencv``      needs nothing new, and decodes all frames up to those that are asked for
``images``      a folder of frames, in natural order of their names, of one file each
=============== ===========================================================================

Frame k is the k-th that is shown. What the header says of their number or rate is not relied on.

Axes: T frames, H × W pixels.
"""

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from ..errors import Unreadable, UserError

BACKENDS = ("av", "torchcodec", "opencv", "images")
DEFAULT_FPS = 30.0
# Containers round times: Matroska's to a millisecond. A frame is shown from this much earlier on.
ROUNDING = 1e-3


class Frame(NamedTuple):
    """A frame in time.

    Attributes:
        seconds: from the first frame on.
        pixels: (H, W, 3) RGB, uint8, upright.
    """

    seconds: float
    pixels: np.ndarray


class Video(ABC):
    """A video that is open; :func:`open_video` makes them.

    It may be used in a ``with`` statement. Iteration gives each :class:`Frame` in order, from the
    first on, and holds one at a time.

    Attributes:
        path: the file or folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def seconds(self) -> np.ndarray:
        """When each frame is shown, ascending from 0: a float64 (frames,)."""

    @abstractmethod
    def _read(self, indices: np.ndarray) -> Sequence[np.ndarray]:
        """The frames (H, W, 3) RGB of ascending, different numbers that exist."""

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Yields all frames.

        Raises:
            Unreadable: one cannot be decoded.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""

    def __len__(self) -> int:
        """Frames that can be read."""
        return len(self.seconds)

    @property
    def fps(self) -> float:
        """Frames in a second, on average."""
        seconds = self.seconds
        return (len(seconds) - 1) / seconds[-1] if len(seconds) > 1 else DEFAULT_FPS

    @property
    def duration(self) -> float:
        """Seconds; the last frame, whose end no container tells for sure, lasts as the average."""
        return len(self) / self.fps

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first frame, upright."""
        height, width = self.frames([0]).shape[1:3]
        return height, width

    def frames(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Reads frames by their numbers, in any order, also more than once.

        Args:
            indices: from 0 on.

        Returns:
            (T, H, W, 3) RGB, uint8, upright; pixels are not made square.

        Raises:
            UserError: there is no such frame.
            Unreadable: a frame cannot be decoded, or sizes differ.
        """
        numbers = np.asarray(indices, dtype=np.int64)
        if numbers.ndim != 1 or not len(numbers):
            raise UserError(f"frames are asked for by a list of numbers, got {indices!r}")
        if numbers.min() < 0 or numbers.max() >= len(self):
            wrong = numbers.min() if numbers.min() < 0 else numbers.max()
            raise UserError(f"video {self.path} has frames 0 to {len(self) - 1}, not {wrong}")
        unique, places = np.unique(numbers, return_inverse=True)
        pictures = self._read(unique)
        if len({picture.shape for picture in pictures}) > 1:
            raise Unreadable(f"video {self.path} has frames of different sizes: expected one size")
        return np.stack([pictures[place] for place in places])

    def at_seconds(self, seconds: Sequence[float] | np.ndarray) -> np.ndarray:
        """Reads what is shown at given times; see :meth:`indices_at` and :meth:`frames`."""
        return self.frames(self.indices_at(seconds))

    def indices_at(self, seconds: Sequence[float] | np.ndarray) -> np.ndarray:
        """Numbers of the frames that are shown at times, int64.

        Args:
            seconds: before the first and after the last frame, these two are shown.
        """
        times = np.asarray(seconds, dtype=np.float64) + ROUNDING
        return np.clip(np.searchsorted(self.seconds, times, side="right") - 1, 0, len(self) - 1)

    def __enter__(self) -> "Video":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_video(path: str | Path, backend: str | None = None, *, fps: float | None = None) -> Video:
    """Opens a video.

    Args:
        path: a file, or a folder of frames.
        backend: one of :data:`BACKENDS`; by default ``images`` for a folder, ``av`` for a file, or
            ``opencv`` if PyAV is not installed.
        fps: frames in a second of a folder, which does not tell, by default 30. Files tell.

    Raises:
        UserError: the backend is unknown, not installed, or not for such a path.
        Unreadable: the video is missing, empty or no video.
    """
    path = Path(path)
    if backend is None:
        backend = "images" if path.is_dir() else "av" if has_av() else "opencv"
    if backend not in BACKENDS:
        raise UserError(f"video backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if fps is not None and not 0 < fps < float("inf"):
        raise UserError(f"fps of {path} must be positive, got {fps}")
    if backend == "images":
        if not path.is_dir():
            raise UserError(f"{path} is no folder of frames: backend 'images' reads folders")
    elif path.is_dir():
        raise UserError(f"{path} is a folder: backend {backend!r} reads files; use 'images'")
    elif not path.is_file():
        raise Unreadable(f"cannot read video {path}: there is no such file")
    elif not path.stat().st_size:
        raise Unreadable(f"cannot read video {path}: the file is empty")
    if backend == "av":
        return _module("with_av").AvVideo(path)
    if backend == "torchcodec":
        return _module("with_torchcodec").TorchcodecVideo(path)
    if backend == "opencv":
        return _module("with_opencv").OpencvVideo(path)
    return _module("with_images").ImagesVideo(path, fps or DEFAULT_FPS)


def read_stream(source: str | int) -> Iterator[Frame]:
    """Yields the frames of a camera or a network stream as they come, until it ends.

    Args:
        source: number of a camera, also as text, which OpenCV opens; or an address that FFmpeg
            knows (``rtsp://…``, ``http://…``) or a file, by PyAV or else by OpenCV.

    Raises:
        Unreadable: it cannot be opened, or gives no frame.
    """
    if isinstance(source, int) or source.isdecimal():
        return _module("with_opencv").camera_frames(int(source))
    if has_av():
        return _module("with_av").stream_frames(source)
    return _module("with_opencv").camera_frames(source)


def has_av() -> bool:
    """Whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def _module(name: str):  # type: ignore[no-untyped-def]
    """Loads a backend when it is needed: most need a package of their own."""
    return importlib.import_module(f".{name}", __package__)
