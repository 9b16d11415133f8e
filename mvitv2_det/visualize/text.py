"""Text on pictures, in the letters of DejaVu Sans, which comes with matplotlib."""

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]


def text_size(text: str, size: int) -> tuple[int, int]:
    """Width and height of the ground of :func:`draw_label`, in pixels."""
    height, width = _ink(text, size).shape
    return width, height


def draw_label(
    picture: np.ndarray, text: str, place: tuple[int, int], size: int, color: RGB
) -> None:
    """Writes a line on a ground of its own into a picture.

    Args:
        picture: (H, W, 3) RGB, uint8; it is changed. What lies outside of it is left out.
        text: the line.
        place: x and y of the ground's upper left corner.
        size: of the letters, in pixels.
        color: of the ground; letters are black or white, whichever stands out.
    """
    ink = _ink(text, size)
    x, y = place
    ink = ink[max(0, -y) :, max(0, -x) :]
    ground = picture[max(0, y) :, max(0, x) :][: ink.shape[0], : ink.shape[1]]
    share = ink[: ground.shape[0], : ground.shape[1], None] / 255.0
    # ITU-R BT.601's luma.
    letters = 0 if np.dot(color, (0.299, 0.587, 0.114)) > 110 else 255
    ground[:] = (1 - share) * color + share * letters


@lru_cache(maxsize=1024)
def _ink(text: str, size: int) -> np.ndarray:
    """(h, w) uint8: how much of each pixel of a label is letters."""
    font, margin = _font(size), max(1, size // 6)
    ascent, descent = font.getmetrics()
    left, _, right, _ = font.getbbox(text)
    image = Image.new("L", (round(right - left) + 2 * margin, ascent + descent + margin))
    ImageDraw.Draw(image).text((margin - left, margin // 2), text, font=font, fill=255)
    return np.asarray(image)


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size)
