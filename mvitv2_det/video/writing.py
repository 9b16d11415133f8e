"""Writing video files, by PyAV."""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..errors import UserError, naming_unwritable
from .with_av import require_av


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    fps: float,
    *,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: Mapping[str, str] | None = None,
) -> None:
    """Writes frames to a video file; its ending says the container.

    Args:
        path: the file.
        frames: (H, W, 3) RGB, uint8, all of one size. An odd side is repeated by a pixel where the
            format halves colours, as ``yuv420p`` does.
        fps: frames in a second.
        codec, pixel_format, options: in FFmpeg's words.

    Raises:
        UserError: PyAV is not installed, there is no frame, or the file cannot be written.
    """
    av = require_av()
    stream = None
    with naming_unwritable(path), av.open(str(path), "w") as container:
        for frame in frames:
            if pixel_format.startswith("yuv420"):
                frame = np.pad(
                    frame, [*((0, side % 2) for side in frame.shape[:2]), (0, 0)], "edge"
                )
            if stream is None:
                rate = Fraction(fps).limit_denominator(1001)
                stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pixel_format
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        if stream is None:
            raise UserError(f"{path} cannot be written: there are no frames")
        container.mux(stream.encode(None))
