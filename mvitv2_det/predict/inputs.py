"""Finding and reading the images and videos to predict on."""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import UserError
from .images import read_rgb

# fmt: off
IMAGE_ENDINGS = {
    ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
    ".ppm", ".tif", ".tiff", ".webp",
}
VIDEO_ENDINGS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
# fmt: on

# Video files state a rounded number of frames. If fewer than this share can be read, the file is
# cut off.
_LEAST_SHARE_OF_FRAMES = 0.95


@dataclass(frozen=True)
class Source:
    """An image or a video.

    Attributes:
        path: the file.
        name: its path from the folder that all inputs have in common; no two sources share it.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether it is a video, by its ending."""
        return self.path.suffix.lower() in VIDEO_ENDINGS

    def count(self) -> int:
        """Counts its images: 1, or the frames that a video states, 0 if it states none."""
        if not self.is_video:
            return 1
        capture = cv2.VideoCapture(str(self.path))
        return max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def images(self, read: Callable[[Path], Any] = read_rgb) -> Iterator[Any]:
        """Yields the image, or each frame of the video, as (H, W, 3) RGB uint8.

        Args:
            read: reads an image, also as something else.

        Raises:
            UserError: it cannot be read, or not to its end.
        """
        if self.is_video:
            yield from _frames(self.path)
        else:
            yield read(self.path)

    def frames_per_second(self) -> float:
        """Reads the frame rate that a video states; 25 if it states none."""
        rate = cv2.VideoCapture(str(self.path)).get(cv2.CAP_PROP_FPS)
        return rate if 0 < rate < float("inf") else 25.0


def find_sources(inputs: Sequence[str], *, videos: bool = True) -> list[Source]:
    """Finds the images and videos that inputs name, each once, in their order.

    Args:
        inputs: files; folders, for the images and videos directly in them; patterns such as
            ``photos/**/*.jpg``, for the images and videos that match.
        videos: whether videos are looked for; one that is named is refused otherwise.

    Raises:
        UserError: an input does not exist or holds nothing to predict on.
    """
    endings = IMAGE_ENDINGS | VIDEO_ENDINGS if videos else IMAGE_ENDINGS
    sources = _named(path for text in inputs for path in _expand(text, endings))
    for source in sources:
        if source.path.suffix.lower() in VIDEO_ENDINGS - endings:
            raise UserError(f"{source.path} is a video: expected images")
    return sources


def find_videos(inputs: Sequence[str]) -> list[Source]:
    """Finds the videos that inputs name, files and folders of frames, each once, in their order.

    Args:
        inputs: files; folders, for the videos directly in them, else for the images directly in
            them, which are the frames of one video, else for the folders of frames directly in
            them; patterns, for the videos and the folders of frames that match.

    Raises:
        UserError: an input does not exist, holds no video, or is an image.
    """
    sources = _named(path for text in inputs for path in _expand_videos(text))
    for source in sources:
        if source.path.suffix.lower() in IMAGE_ENDINGS and not source.path.is_dir():
            raise UserError(
                f"{source.path} is an image: expected videos, as files or folders of frames"
            )
    return sources


def _named(paths: Iterable[Path]) -> list[Source]:
    """Names each path once, from the folder that all have in common."""
    unique = {path.resolve(): path.absolute() for path in paths}
    root = os.path.commonpath([path.parent for path in unique.values()])
    return [Source(path, path.relative_to(root).as_posix()) for path in unique.values()]


def _expand_videos(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        try:
            inside = sorted(path.iterdir())
        except OSError as error:
            raise UserError(f"cannot read folder {text}: {error.strerror}") from error
        if found := _known(inside, VIDEO_ENDINGS):
            return found
        if _known(inside, IMAGE_ENDINGS):
            return [path]
        if not (found := [folder for folder in inside if _holds_frames(folder)]):
            raise UserError(
                f"there is no video, image or folder of frames directly in folder {text}; "
                f"'{path}/**' also looks into its folders"
            )
        return found
    if os.path.lexists(path):
        return [path]
    if glob.has_magic(text):
        matching = sorted(map(Path, glob.glob(text, recursive=True)))
        found = _known(matching, VIDEO_ENDINGS) + list(filter(_holds_frames, matching))
        if not found:
            raise UserError(f"no video or folder of frames matches {text!r}")
        return found
    raise UserError(f"there is no video or folder {text!r}")


def _holds_frames(path: Path) -> bool:
    """Whether it is a folder with images directly in it, that can be read."""
    try:
        return path.is_dir() and bool(_known(path.iterdir(), IMAGE_ENDINGS))
    except OSError:
        return False


def _expand(text: str, endings: set[str]) -> list[Path]:
    path = Path(text)
    kinds = "image or video" if endings & VIDEO_ENDINGS else "image"
    if path.is_dir():
        try:
            found = _known(path.iterdir(), endings)
        except OSError as error:
            raise UserError(f"cannot read folder {text}: {error.strerror}") from error
        if not found:
            raise UserError(
                f"there is no {kinds} directly in folder {text}; '{path}/**' also looks "
                f"into its folders"
            )
        return found
    if os.path.lexists(path):  # before patterns: a name may hold brackets
        return [path]
    if glob.has_magic(text):
        found = _known(map(Path, glob.glob(text, recursive=True)), endings)
        if not found:
            raise UserError(f"no {kinds} matches {text!r}")
        return found
    raise UserError(f"there is no {kinds.replace(' or', ',')} or folder {text!r}")


def _known(paths: Iterable[Path], endings: set[str]) -> list[Path]:
    """Keeps files with these endings, and sorts them; leaves hidden files out."""
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in endings and not path.name.startswith(".") and not path.is_dir()
    )


def _frames(file: Path) -> Iterator[np.ndarray]:
    capture = cv2.VideoCapture(str(file))
    try:
        if not capture.isOpened():
            raise UserError(
                f"cannot read video {file}: it is missing, cut off, or no video that OpenCV knows"
            )
        expected, count = capture.get(cv2.CAP_PROP_FRAME_COUNT), 0
        while True:
            is_read, frame = capture.read()
            if not is_read:
                break
            count += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()
    if count == 0 or count < _LEAST_SHARE_OF_FRAMES * expected - 1:
        raise UserError(
            f"cannot read video {file} to its end: {count} of its {expected:.0f} frames were read"
        )
