"""Videos as folders of frames."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from timm.utils.misc import natural_key

from ..errors import Unreadable
from ..predict.images import read_rgb
from ..predict.inputs import IMAGE_ENDINGS
from .reading import Frame, Video


class ImagesVideo(Video):
    """A folder of frames; see :class:`~mvitv2_det.video.Video`.

    Args:
        path: the folder.
        fps: frames in a second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        super().__init__(path)
        self._fps = fps
        try:
            names = [file.name for file in path.iterdir() if not file.name.startswith(".")]
        except OSError as error:
            raise Unreadable(f"cannot read folder {path}: {error.strerror}") from error
        images = [name for name in names if Path(name).suffix.lower() in IMAGE_ENDINGS]
        self._files = [path / name for name in sorted(images, key=natural_key)]
        if not images:
            raise Unreadable(f"folder {path} holds no image: expected the frames of a video")

    @functools.cached_property
    def seconds(self) -> np.ndarray:
        """When each frame is shown, from 0: a float64 (frames,)."""
        return np.arange(len(self._files)) / self._fps

    @property
    def fps(self) -> float:
        """Frames in a second, as given."""
        return self._fps

    def _read(self, indices: np.ndarray) -> Sequence[np.ndarray]:
        return [read_rgb(self._files[index]) for index in indices]

    def __iter__(self) -> Iterator[Frame]:
        """Yields all frames."""
        for seconds, file in zip(self.seconds.tolist(), self._files, strict=True):
            yield Frame(seconds, read_rgb(file))

    def close(self) -> None:
        """Nothing is open."""
