"""Videos by torchcodec, in its exact mode, on the CPU."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import Unreadable, UserError
from .reading import Frame, Video

# Containers that store when frames are shown. Of an AVI with B-frames, torchcodec 0.17 gives frames
# beside those that are asked for, or fails at the end.
ENDINGS = (".m4v", ".mkv", ".mov", ".mp4", ".webm")
# Frames whose times are read at once, as each comes with its pixels.
_CHUNK = 16


class TorchcodecVideo(Video):
    """A video file; see :class:`~mvitv2_det.video.Video`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if path.suffix.lower() not in ENDINGS:
            raise UserError(
                f"backend 'torchcodec' is not exact for video {path}: expected one of "
                f"{', '.join(ENDINGS)}; backend 'av' is"
            )
        decoder_class = _decoder_class()
        is_worker = torch.utils.data.get_worker_info() is not None
        with self._naming_broken():
            self._decoder = decoder_class(
                str(path),
                dimension_order="NHWC",
                seek_mode="exact",
                num_ffmpeg_threads=1 if is_worker else 0,
            )

    def __len__(self) -> int:
        """Frames, as torchcodec has counted them."""
        return len(self._decoder)

    @functools.cached_property
    def seconds(self) -> np.ndarray:
        """When each frame is shown, ascending from 0: a float64 (frames,). Decodes them all."""
        found = []
        with self._naming_broken():
            for start in range(0, len(self), _CHUNK):
                end = min(start + _CHUNK, len(self))
                found.append(self._decoder.get_frames_in_range(start, end).pts_seconds.numpy())
        seconds = np.concatenate(found)
        return seconds - seconds[0]

    @property
    def fps(self) -> float:
        """Frames in a second, on average, from their number and the whole time."""
        return len(self) / self.duration

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        metadata = self._decoder.metadata
        return metadata.end_stream_seconds - metadata.begin_stream_seconds

    def _read(self, indices: np.ndarray) -> Sequence[np.ndarray]:
        with self._naming_broken():
            return list(self._decoder.get_frames_at(indices.tolist()).data.numpy())

    def __iter__(self) -> Iterator[Frame]:
        """Yields all frames."""
        first = 0.0
        with self._naming_broken():
            for index in range(len(self)):
                frame = self._decoder.get_frame_at(index)
                first = frame.pts_seconds if index == 0 else first
                yield Frame(frame.pts_seconds - first, frame.data.numpy())

    def close(self) -> None:
        """Lets the decoder go."""
        self.__dict__.pop("_decoder", None)

    @contextmanager
    def _naming_broken(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise Unreadable(
                f"torchcodec cannot read video {self.path}: {reason}; backend 'av' may"
            ) from error


def _decoder_class() -> Any:
    try:
        from torchcodec.decoders import VideoDecoder
    except Exception as error:  # it finds no FFmpeg, or another torch: OSError, RuntimeError, …
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"video backend 'torchcodec' cannot be loaded: {reason}; it needs the package for "
            f"this torch, and a system's FFmpeg; backend 'av' needs neither"
        ) from error
    return VideoDecoder
