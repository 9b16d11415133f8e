"""What timm's augmentations need to run with every release of Pillow."""

from collections.abc import Iterable
from typing import Any

from PIL import Image, ImageOps


def mend_posterize(operations: Iterable[Any]) -> None:
    """Lets timm's operations keep no bits of colours, which newer releases of Pillow refuse.

    RandAugment asks for none where its magnitude reaches 10, as in a few of a hundred draws of the
    recipe's. Older releases take that as it is meant.

    Args:
        operations: of a transform of timm; changed in place.
    """
    for operation in operations:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)
