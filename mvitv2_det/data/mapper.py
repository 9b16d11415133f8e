"""Detectron2's dataset mapper, with an error that names the image that could not be read."""

from detectron2 import data
from detectron2.data.detection_utils import SizeMismatchError

from ..errors import UserError


class DatasetMapper(data.DatasetMapper):
    """As ``detectron2.data.DatasetMapper``.

    Raises:
        UserError: an image is missing, cut off, no image at all, or has another size than its
            annotations say.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """One record in Detectron2's dataset format to one input of its models."""
        try:
            return super().__call__(dataset_dict)
        except (OSError, SyntaxError, SizeMismatchError) as error:  # Pillow raises the first two
            reason = " ".join(str(error).split())
            raise UserError(f"cannot read image {dataset_dict['file_name']}: {reason}") from error
