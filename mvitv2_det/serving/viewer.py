"""What the page shows: pictures with their instances, and what a place of them attends to.

Axes: H × W pixels of an image, H' × W' of the shown picture, h × w of the network's input; N
instances.
"""

import copy
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..predict.images import read_rgb, reading_image
from ..predict.outputs import as_annotations
from ..predict.predictor import Predictor, set_score_threshold
from ..visualize.attention_maps import describe_block, draw_attention_of_block, find_trunk
from ..visualize.instances import draw_on, picture_scale, resized
from ..visualize.look_inside import global_blocks, normalised

# What scores lower is never shown: the network keeps what scores higher, once, and the threshold
# of the page chooses among it.
LEAST_SCORE = 0.05
MOST_SHOWN = 1600  # pixels of the longer side of a shown picture
MOST_MEGAPIXELS = 100  # of an image: decoded, it takes three bytes for each


@dataclass(frozen=True)
class Seen:
    """An image that was looked at.

    Attributes:
        picture: (H', W', 3) RGB, uint8, as it is shown, without instances.
        annotations: N instances that score over :data:`LEAST_SCORE`, in pixels of ``picture``, in
            Detectron2's dataset format.
        size: H and W of the image.
        pixels: (3, h, w), the network's input, 0 to 255, in the order of the model's colours.
    """

    picture: np.ndarray
    annotations: list[dict[str, Any]]
    size: tuple[int, int]
    pixels: Tensor

    def over(self, threshold: float) -> list[dict[str, Any]]:
        """The instances that score higher."""
        return [one for one in self.annotations if one["score"] > threshold]


class Viewer:
    """Looks at images with a detector; one at a time, whoever asks.

    Attributes:
        class_names: of the detector.
        blocks: what each block of the backbone is, in words, in their order.
        default_block: the last of those that attend over the whole map.
    """

    def __init__(self, predictor: Predictor) -> None:
        """
        Args:
            predictor: computes with torch, without multi-scale testing. Its score threshold
                becomes :data:`LEAST_SCORE`.

        Raises:
            UserError: its model has no backbone of this project.
        """
        set_score_threshold(predictor.model, LEAST_SCORE)
        self._predictor = predictor
        self.class_names = predictor.classes.names
        trunk = find_trunk(predictor.model)
        # Attention is computed on the CPU, in float32.
        self._backbone = getattr(predictor.model, "backbone", predictor.model)
        if predictor.device.type != "cpu":
            self._backbone = copy.deepcopy(self._backbone).cpu()
        self.blocks = [describe_block(trunk, block) for block in range(len(trunk.blocks))]
        self.default_block = global_blocks(trunk)[-1]
        # Hooks read what goes through the network: another image must not go through meanwhile.
        self._lock = Lock()

    def look(self, file: Path) -> Seen:
        """Finds the instances of an image.

        They are those of evaluation, in pixels of the shown picture: the network's input is the
        same whatever is shown.

        Raises:
            UserError: the image cannot be read or resized, or is too large.
        """
        with reading_image(file), Image.open(file) as image:
            width, height = image.size
        if height * width > MOST_MEGAPIXELS * 1e6:
            raise UserError(
                f"{file.name} has {width}×{height} pixels, and this page shows images of up to "
                f"{MOST_MEGAPIXELS} million: mvitv2-det predict --tiles 1024 is for such"
            )
        rgb = read_rgb(file)
        scale = min(picture_scale(*rgb.shape[:2]), MOST_SHOWN / max(rgb.shape))
        picture = resized(rgb, scale)
        prepared = self._predictor.prepare_rgb(rgb, file.name)
        prepared |= {"height": picture.shape[0], "width": picture.shape[1]}
        with self._lock:
            (instances,) = self._predictor.infer([prepared])
        height, width = rgb.shape[:2]
        return Seen(picture, as_annotations(instances), (height, width), prepared["image"])

    def draw(self, seen: Seen, threshold: float) -> np.ndarray:
        """Draws the instances that score higher: (H', W', 3) RGB, uint8."""
        picture = seen.picture.copy()
        draw_on(picture, seen.over(threshold), self.class_names, picture.shape[:2], 1)
        return picture

    def summary(self, seen: Seen, threshold: float) -> str:
        """Says in one line how many instances score higher, and of which classes."""
        shown = seen.over(threshold)
        classes = Counter(self.class_names[one["category_id"]] for one in shown)
        counted = ", ".join(f"{count} × {name}" for name, count in classes.most_common())
        others = len(seen.annotations) - len(shown)
        return (counted or "no instances") + (f"; {others} score less" if others else "")

    def attention(self, seen: Seen, place: tuple[int, int], block: int) -> tuple[str, Image.Image]:
        """Draws what the query at a place of the shown picture attends to.

        Args:
            seen: the image.
            place: x and y in pixels of ``seen.picture``.
            block: from 0 on.

        Returns:
            the place in words, in pixels of the image; and a picture of the mean over heads and of
            each head.
        """
        # Between 0 and 1, of the middle of the pixel.
        shares = [
            (along + 0.5) / side
            for along, side in zip(place[::-1], seen.picture.shape[:2], strict=True)
        ]
        pixels = seen.pixels.permute(1, 2, 0).numpy()
        if getattr(self._predictor.model, "input_format", "RGB") == "BGR":
            pixels = pixels[:, :, ::-1]
        pixel = [int(share * side) for share, side in zip(shares, pixels.shape[:2], strict=True)]
        y, x = (int(share * side) for share, side in zip(shares, seen.size, strict=True))
        query = f"query at y {y}, x {x}"
        file = BytesIO()
        with self._lock:
            draw_attention_of_block(
                self._backbone,
                normalised(self._predictor.model, pixels),
                pixels,
                tuple(pixel),
                file,
                block=block,
                query=query,
            )
        return query, Image.open(file)
