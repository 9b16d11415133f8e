"""Images of which parts are looked at, so that one of 20,000² pixels needs no more than 2 GB."""

import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..visualize.instances import resized
from .images import as_rgb, reading_image

_ROWS = 256  # of a picture that are made together


class LargeImage:
    """An image, as a file or in memory.

    A file is decoded by Pillow, once, and not copied: 4 bytes for each pixel of colour. Of formats
    that store pixels as they are (BMP, PPM, some TIFF) Pillow maps the file into memory.

    Attributes:
        shape: (H, W, 3).
    """

    def __init__(self, image: str | Path | np.ndarray | Image.Image, channel_order: str = "RGB"):
        """
        Args:
            image: a file; or what :func:`.images.as_rgb` takes.
            channel_order: of an array, ``RGB`` or ``BGR``.

        Raises:
            Unreadable: the file cannot be read.
            UserError: it is no image.
        """
        self._image: np.ndarray | Image.Image
        if isinstance(image, np.ndarray):
            self._image = as_rgb(image, channel_order)
            height, width = self._image.shape[:2]
        else:
            self._image = image if isinstance(image, Image.Image) else _open(image)
            width, height = self._image.size
        self.shape = height, width, 3

    def part(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """Reads (bottom - top, right - left, 3) RGB, uint8.

        Raises:
            UserError: the pixels have no defined white.
        """
        if isinstance(self._image, np.ndarray):
            return self._image[top:bottom, left:right]
        part = self._image.crop((left, top, right, bottom))
        part.info = {}  # the whole is upright already
        return as_rgb(part, "RGB")

    def at_scale(self, scale: float) -> np.ndarray:
        """The image (H', W', 3) resized, without more memory than for the result.

        Args:
            scale: a whole number, or one divided by it; see :func:`.instances.picture_scale`.
        """
        height, width = self.shape[:2]
        rows = max(1, round(1 / scale)) * _ROWS
        bands = [
            resized(self.part(top, 0, min(top + rows, height), width), scale)
            for top in range(0, height, rows)
        ]
        return np.concatenate(bands)


def _open(file: str | Path) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = None  # the user has said that it is large
        with reading_image(file):
            image = Image.open(file)
            image.load()
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    with warnings.catch_warnings(), suppress(Exception):  # damaged Exif data are ignored
        warnings.simplefilter("ignore")
        ImageOps.exif_transpose(image, in_place=True)
    return image
