"""Detectron2's dataset mapper, with an error that names the image that could not be read."""

from collections.abc import Iterator
from contextlib import contextmanager

from detectron2 import data
from detectron2.data.detection_utils import SizeMismatchError

from ..errors import UserError


@contextmanager
def naming_unreadable_image(file: str) -> Iterator[None]:
    """Turns what goes wrong in reading an image into one line that names it.

    Raises:
        UserError: the file is missing, cut off, no image at all, or has another size than its
            annotations say.
    """
    try:
        yield
    except (OSError, SyntaxError, SizeMismatchError) as error:  # Pillow raises the first two
        raise UserError(f"cannot read image {file}: {' '.join(str(error).split())}") from error


class DatasetMapper(data.DatasetMapper):
    """As ``detectron2.data.DatasetMapper``.

    Raises:
        UserError: an image cannot be read; see :func:`naming_unreadable_image`.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """One record in Detectron2's dataset format to one input of its models."""
        with naming_unreadable_image(dataset_dict["file_name"]):
            return super().__call__(dataset_dict)
