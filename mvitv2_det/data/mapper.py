"""Detectron2's dataset mapper, with an error that names an image that cannot be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2 import data
from detectron2.data.detection_utils import SizeMismatchError

from ..errors import Unreadable


@contextmanager
def naming_unreadable_image(file: str) -> Iterator[None]:
    """Turns errors in reading an image into an error of one line that names the image.

    Raises:
        Unreadable: the file is missing, truncated or not an image, or its size differs from
            the one in its annotations.
    """
    try:
        yield
    except (OSError, SyntaxError, SizeMismatchError) as error:  # Pillow raises the first two.
        raise Unreadable(f"cannot read image {file}: {' '.join(str(error).split())}") from error


class DatasetMapper(data.DatasetMapper):
    """``detectron2.data.DatasetMapper``, with errors that name the image."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Turns a record in Detectron2's dataset format into an input of Detectron2's models.

        Raises:
            Unreadable: the image cannot be read; see :func:`naming_unreadable_image`.
        """
        with naming_unreadable_image(dataset_dict["file_name"]):
            return super().__call__(dataset_dict)
