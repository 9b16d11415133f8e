"""Writing video files, by PyAV."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import UserError, naming_unwritable
from .with_av import require_av

# The index comes first, so that a browser can play a file while it loads it.
_CONTAINER_OPTIONS = {".mp4": {"movflags": "faststart"}}


class VideoWriter:
    """Writes frames to a video file as they come; a context manager.

    By default it is H.264 in the colours that browsers play.
    """

    def __init__(
        self,
        path: str | Path,
        fps: float,
        *,
        codec: str = "libx264",
        pixel_format: str = "yuv420p",
        options: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            path: the file; its ending says the container.
            fps: frames in a second.
            codec, pixel_format, options: in FFmpeg's words.

        Raises:
            UserError: PyAV is not installed, or the file cannot be written.
        """
        self._av = require_av()
        self._path, self._rate = Path(path), Fraction(fps).limit_denominator(1001)
        self._codec, self._format, self._options = codec, pixel_format, dict(options or {})
        self._stream: Any = None
        with naming_unwritable(path):
            container = _CONTAINER_OPTIONS.get(self._path.suffix.lower(), {})
            self._container = self._av.open(str(path), "w", container_options=container)

    def add(self, frame: np.ndarray) -> None:
        """Writes (H, W, 3) RGB, uint8, all of one size.

        An odd side is repeated by a pixel where the format halves colours, as ``yuv420p`` does.

        Raises:
            UserError: the file cannot be written.
        """
        if self._format.startswith("yuv420"):
            frame = np.pad(frame, [*((0, side % 2) for side in frame.shape[:2]), (0, 0)], "edge")
        with naming_unwritable(self._path):
            if self._stream is None:
                stream = self._container.add_stream(
                    self._codec, rate=self._rate, options=self._options
                )
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = self._format
                self._stream = stream
            picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Ends the file.

        Raises:
            UserError: there are no frames, or the file cannot be written.
        """
        with naming_unwritable(self._path), self._container:
            if self._stream is None:
                raise UserError(f"{self._path} cannot be written: there are no frames")
            self._container.mux(self._stream.encode(None))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._container.close()


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: Mapping[str, str] | None = None,
) -> None:
    """Writes frames to a video file; see :class:`VideoWriter`.

    Raises:
        UserError: PyAV is not installed, there is no frame, or the file cannot be written.
    """
    with VideoWriter(path, fps, codec=codec, pixel_format=pixel_format, options=options) as writer:
        for frame in frames:
            writer.add(frame)
