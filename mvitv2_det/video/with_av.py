"""Videos by PyAV.

A file's packets tell when each frame is shown, without decoding it, where the container stores
that (MP4, Matroska). Frames are then found by their time, from the key frame before, so that order
of decoding (B-frames), variable rates and wrong headers do not matter. Of all other files, and
where decoding shows that packets and frames differ, all frames are decoded once to count them.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import Unreadable, UserError
from .reading import DEFAULT_FPS, Frame, Video

# Containers that store when each packet is shown; AVI and raw streams do not, MPEG-TS may not.
_TIMED = ("mov", "matroska")
# VP8 hides frames in packets of their own.
_HIDING_CODECS = ("vp8",)


class _WrongIndex(Exception):
    """A frame is not where the packets have said."""


@dataclass(frozen=True)
class _Index:
    """Where frames are.

    Attributes:
        pts: (frames,) time stamps in the order of showing; None if frames are counted.
        keys: ascending time stamps of key frames, from which decoding can start.
        seconds: (frames,) from the first on.
    """

    pts: np.ndarray | None
    keys: np.ndarray
    seconds: np.ndarray


class AvVideo(Video):
    """A video file; see :class:`~mvitv2_det.video.Video`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        status = path.stat()
        self._file = (str(path), status.st_size, status.st_mtime_ns)
        self._container, self._stream = _open(path)
        self._pixels = _Pixels()
        self._decoded: Iterator[Any] | None = None
        self._next = 0  # number of the next frame, of those that are counted
        self._last: int | None = None  # time stamp of the last frame, of those that have one

    @property
    def seconds(self) -> np.ndarray:
        """When each frame is shown, ascending from 0: a float64 (frames,)."""
        return self._index.seconds

    @property
    def _index(self) -> _Index:
        return _REPAIRED.get(self._file) or _read_index(*self._file)

    def _read(self, indices: np.ndarray) -> Sequence[np.ndarray]:
        index = self._index
        if index.pts is None:
            return self._read_counted(indices)
        try:
            return self._read_timed(index, index.pts[indices])
        except _WrongIndex:
            _REPAIRED[self._file] = _count_frames(self.path)
            if indices[-1] >= len(self):
                raise Unreadable(
                    f"cannot read frame {indices[-1]} of video {self.path}: {len(self)} of its "
                    f"{len(index.seconds)} frames can be decoded"
                ) from None
            return self._read_counted(indices)

    def _read_timed(self, index: _Index, stamps: np.ndarray) -> list[np.ndarray]:
        found = []
        with naming_broken(self.path):
            for stamp in stamps.tolist():
                key = int(np.searchsorted(index.keys, stamp, side="right")) - 1
                last = self._last
                if last is None or last >= stamp or (key > 0 and index.keys[key] > last):
                    self._seek(index, key, stamp)
                found.append(self._pixels(self._find(stamp)))
        return found

    def _seek(self, index: _Index, key: int, stamp: int) -> None:
        """Continues at a key frame such that the frame of a time stamp is still to come."""
        while key > 0:
            self._container.seek(int(index.keys[key]), stream=self._stream)
            self._decoded = self._container.decode(self._stream)
            first = next(self._decoded, None)
            if first is not None and first.pts is not None and first.pts <= stamp:
                self._decoded = _before(first, self._decoded)
                self._last = None
                return
            key -= 1  # frames before a key frame in time may be stored after it
        self._restart()

    def _restart(self) -> None:
        self._container.close()
        self._container, self._stream = _open(self.path)
        self._decoded = self._container.decode(self._stream)
        self._last, self._next = None, 0

    def _find(self, stamp: int) -> Any:
        if self._decoded is None:
            self._restart()
        for frame in self._decoded or ():
            if frame.pts is None or frame.pts > stamp:
                break
            self._last = frame.pts
            if frame.pts == stamp:
                return frame
        raise _WrongIndex

    def _read_counted(self, indices: np.ndarray) -> list[np.ndarray]:
        wanted, found = set(indices.tolist()), []
        with naming_broken(self.path):
            if self._decoded is None or self._last is not None or indices[0] < self._next:
                self._restart()
            for frame in self._decoded or ():
                self._next += 1
                if self._next - 1 in wanted:
                    found.append(self._pixels(frame))
                if len(found) == len(wanted):
                    return found
        raise Unreadable(f"video {self.path} ended early: it has changed while it was read")

    def __iter__(self) -> Iterator[Frame]:
        """Yields all frames."""
        return stream_frames(self.path)

    def close(self) -> None:
        """Closes the file."""
        self._container.close()


def stream_frames(source: str | Path) -> Iterator[Frame]:
    """Yields the frames of a file or stream; see :func:`mvitv2_det.video.read_stream`."""
    container, stream = _open(source)
    clock, pixels = _Clock(stream), _Pixels()
    with container, naming_broken(source):
        for frame in container.decode(stream):
            yield Frame(clock.seconds(frame.pts), pixels(frame))
    if not clock.count:
        raise Unreadable(f"video {source} has no frame that can be decoded")


@contextmanager
def naming_broken(source: str | Path) -> Iterator[None]:
    """Turns FFmpeg's errors into a :class:`Unreadable` that names the file."""
    av = require_av()
    try:
        yield
    except (av.FFmpegError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreadable(f"cannot read video {source}: {reason}") from error


@functools.cache
def require_av() -> Any:
    """Imports PyAV.

    Raises:
        UserError: it is not installed; the message says how it is.
    """
    try:
        import av
        import av.stream
    except ImportError as error:
        raise UserError(
            f"PyAV is needed here: {error}; run pip install 'mvitv2_det[video]'"
        ) from error
    return av


class _Clock:
    """Tells when frames are shown: by their time stamps while these grow, otherwise by the rate.

    Attributes:
        count: frames so far.
    """

    def __init__(self, stream: Any) -> None:
        self.count = 0
        self._step = 1 / float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
        self._unit = float(stream.time_base or 0)
        self._first: int | None = None
        self._last = -self._step

    def seconds(self, pts: int | None) -> float:
        """The time of the next frame, from that of the first on."""
        self._first = pts if self.count == 0 else self._first
        stamped = None if pts is None or self._first is None else (pts - self._first) * self._unit
        is_later = stamped is not None and stamped > self._last
        self._last = stamped if is_later and stamped is not None else self._last + self._step
        self.count += 1
        return self._last


def _open(source: str | Path) -> tuple[Any, Any]:
    av = require_av()
    # Titles that are no UTF-8 are no reason to stop: PyAV 19 reads all, and has no option.
    options = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
    with naming_broken(source):
        container = av.open(str(source), **options)
    cover = av.stream.Disposition.attached_pic
    streams = [each for each in container.streams.video if not each.disposition & cover]
    if not streams or streams[0].codec_context is None:
        container.close()
        raise Unreadable(f"{source} has no video that FFmpeg can decode: expected a video file")
    stream = streams[0]
    # Frames that are decoded side by side need memory.
    stream.thread_type = "NONE" if _is_worker() else "AUTO"
    stream.thread_count = 1 if _is_worker() else 0
    return container, stream


# What decoding has found out, in this process.
_REPAIRED: dict[tuple[str, int, int], _Index] = {}


@functools.lru_cache(maxsize=4096)
def _read_index(path: str, size: int, modified: int) -> _Index:
    """Reads when frames are shown; size and time of change tell that a file is the same."""
    del size, modified
    container, stream = _open(path)
    is_timed = container.format.name.startswith(_TIMED)
    if not is_timed or stream.codec_context.name in _HIDING_CODECS:
        container.close()
        return _count_frames(path)
    with container, naming_broken(path):
        packets = [
            (packet.pts, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
        unit = float(stream.time_base)
    if not packets or any(pts is None for pts, _ in packets):
        return _count_frames(path)
    pts = np.sort(np.array([pts for pts, _ in packets], dtype=np.int64))
    if (np.diff(pts) <= 0).any():
        return _count_frames(path)
    keys = np.sort(np.array([pts for pts, is_key in packets if is_key], dtype=np.int64))
    return _Index(pts, keys, (pts - pts[0]) * unit)


def _count_frames(path: str | Path) -> _Index:
    container, stream = _open(path)
    clock = _Clock(stream)
    with container, naming_broken(path):
        seconds = [clock.seconds(frame.pts) for frame in container.decode(stream)]
    if not seconds:
        raise Unreadable(f"video {path} has no frame that can be decoded")
    return _Index(None, np.empty(0, dtype=np.int64), np.array(seconds))


class _Pixels:
    """Turns decoded frames into pixels, by a scaler of its own.

    PyAV 19 keeps one scaler for each thread, whose helper threads a loader's worker lacks that was
    forked after them: it would wait for them for ever.
    """

    def __init__(self) -> None:
        av = require_av()
        self._scaler = av.video.reformatter.VideoReformatter()
        takes_threads = int(av.__version__.split(".")[0]) >= 18
        self._options = {"threads": 1} if _is_worker() and takes_threads else {}

    def __call__(self, frame: Any) -> np.ndarray:
        """(H, W, 3) RGB, turned as the file says."""
        pixels = self._scaler.reformat(frame, format="rgb24", **self._options).to_ndarray()
        quarters = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


def _is_worker() -> bool:
    """Whether this is a worker of a data loader, which has one core."""
    return torch.utils.data.get_worker_info() is not None


def _before(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
