"""Reading images of any kind as 8-bit RGB arrays."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import Unreadable, UserError

_MOST_16_BIT = 65535


def read_rgb(file: str | Path) -> np.ndarray:
    """Reads an image as Detectron2's training and evaluation do, rotated as its Exif data say.

    Grey, palette and CMYK images are converted; transparency is dropped, as in training. Training
    clips channels of 16 bits at 255; here their full range is scaled to 8 bits.

    Returns:
        (H, W, 3) RGB, uint8.

    Raises:
        Unreadable: the file is missing, empty, cut off, no image, or of a kind whose white is
            not defined (32-bit integers and floats).
    """
    with reading_image(file), Image.open(file) as image:
        return _from_pillow(image)


def decode_rgb(content: IO[bytes], name: object) -> np.ndarray:
    """Reads an image of a file that is open, or in memory, as :func:`read_rgb` does.

    Args:
        content: the file.
        name: what errors call it, as ``str()``.

    Returns:
        (H, W, 3) RGB, uint8.

    Raises:
        Unreadable: as :func:`read_rgb`.
    """
    with naming_damage(name), Image.open(content) as image:
        return _from_pillow(image)


def transformed(transform: Callable[[Image.Image], Any], rgb: np.ndarray, name: object) -> Any:
    """Applies a transform of Pillow's images to (H, W, 3) RGB, uint8.

    Args:
        transform: which resizes, so that not every size will do.
        rgb: the image.
        name: what errors call it, as ``str()``.

    Raises:
        Unreadable: it cannot be resized.
    """
    try:
        return transform(Image.fromarray(rgb))
    except (ValueError, ZeroDivisionError, RuntimeError, MemoryError) as error:
        height, width = rgb.shape[:2]
        raise Unreadable(f"cannot resize {name} of {width}×{height}: {error}") from error


@contextmanager
def reading_image(file: str | Path) -> Iterator[None]:
    """Turns whatever Pillow raises for a file into one line.

    Raises:
        Unreadable: see :func:`read_rgb`.
    """
    if not os.path.isfile(file):
        raise Unreadable(f"cannot read image {file}: there is no such file")
    if os.path.getsize(file) == 0:
        raise Unreadable(f"cannot read image {file}: the file is empty")
    with naming_damage(file):
        yield


@contextmanager
def naming_damage(file: object) -> Iterator[None]:
    """Turns whatever Pillow raises for an image, of a file or in memory, into one line.

    Raises:
        Unreadable: see :func:`read_rgb`.
    """
    try:
        yield
    except UnidentifiedImageError as error:
        raise Unreadable(f"cannot read image {file}: it is no image that Pillow knows") from error
    except Image.DecompressionBombError as error:
        raise Unreadable(
            f"cannot read image {file}: it is too large to be seen as one; predict --tiles 1024 "
            f"looks at parts of it"
        ) from error
    except Exception as error:  # damaged files make Pillow's decoders raise whatever they meet
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"cannot read image {file}: {reason}") from error


def as_rgb(image: np.ndarray | Image.Image, channel_order: str) -> np.ndarray:
    """Converts an image in memory to 8-bit RGB.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8, or uint16 over its full range; a
            fourth channel is dropped. Or an image of Pillow, as :func:`read_rgb` converts it.
        channel_order: of an array: ``RGB``, or ``BGR`` as ``cv2.imread`` gives it.

    Returns:
        (H, W, 3) RGB, uint8.

    Raises:
        UserError: the array has another shape or type, or Pillow cannot convert the image.
    """
    if isinstance(image, Image.Image):
        try:
            return _from_pillow(image)
        except Exception as error:  # as for files: Pillow may read this one's only now
            raise UserError(f"cannot convert the image of Pillow: {error}") from error
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise UserError(
            f"an image must be an array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got "
            f"{image.shape}"
        )
    if image.dtype == np.uint16:
        image = _to_8_bits(image)
    if image.dtype != np.uint8:
        raise UserError(
            f"an image must be of uint8 (0 to 255) or uint16 (0 to 65535), got {image.dtype}"
        )
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    image = image[:, :, :3]
    return np.ascontiguousarray(image[:, :, ::-1] if channel_order == "BGR" else image)


def _from_pillow(image: Image.Image) -> np.ndarray:
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_deep_grey(np.asarray(_upright(image)))
    return np.array(_upright(image).convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    """Rotates an image as its Exif data say; damaged ones are ignored, as by Detectron2."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # pixels that cannot be read raise again when they are converted
        return image


def _from_deep_grey(grey: np.ndarray) -> np.ndarray:
    """Converts (H, W) of more than 8 bits to (H, W, 3) uint8."""
    # Pillow opens 16-bit files in modes of 16 bits or of 32.
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > _MOST_16_BIT:
        raise ValueError(
            f"its {grey.dtype} values, {grey.min():g} to {grey.max():g}, have no defined white; "
            f"save it with 8 or 16 bits a channel"
        )
    return np.repeat(_to_8_bits(grey)[:, :, None], 3, axis=2)


def _to_8_bits(image: np.ndarray) -> np.ndarray:
    """Scales 0…65535 to 0…255 by keeping the high byte, as Pillow does with 16-bit colour."""
    return (image.astype(np.int32) >> 8).astype(np.uint8)
