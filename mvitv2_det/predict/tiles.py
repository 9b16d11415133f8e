"""Finding instances in large images, tile by tile.

An image is cut into overlapping tiles, each of which is seen as an image is; what tiles find is
put together by :mod:`.stitching`. An image that one tile covers is seen as without tiles.
"""

import ctypes
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from ..errors import UserError
from ..visualize.masks import MaskPart
from .image_predictor import ImageLike, ImagePredictor, batches
from .large_images import LargeImage
from .loop import progress
from .predictor import Predictor
from .stitching import Found, Tile, stitch

_BATCHES_BETWEEN_TRIMS = 4  # a trim takes some 50 ms


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Attributes:
        side: of the square tiles, in pixels of the image; at an image's end they are moved inside.
        overlap: pixels that neighbours share, at least. An instance of at most this size is whole
            in one of them.
    """

    side: int
    overlap: int

    def __post_init__(self) -> None:
        if self.side < 1 or not 0 <= self.overlap < self.side:
            raise UserError(
                f"tiles must have a side of 1 or more and an overlap from 0 to less than the side, "
                f"got {self.side}:{self.overlap}"
            )

    @classmethod
    def parse(cls, text: str) -> "Tiling":
        """Reads ``SIDE`` or ``SIDE:OVERLAP``; by default tiles overlap by a quarter.

        Raises:
            UserError: it is no such text.
        """
        side, colon, overlap = text.partition(":")
        if not side.isdecimal() or (colon and not overlap.isdecimal()):
            raise UserError(f"--tiles must be SIDE or SIDE:OVERLAP in pixels, got {text!r}")
        return cls(int(side), int(overlap) if colon else int(side) // 4)

    def tiles(self, height: int, width: int) -> list[Tile]:
        """Covers an image, row by row, with as few tiles as do, evenly spread."""
        rows, columns = self._starts(height), self._starts(width)
        sides = min(self.side, height), min(self.side, width)
        return [
            Tile(top, left, top + sides[0], left + sides[1]) for top in rows for left in columns
        ]

    def _starts(self, length: int) -> list[int]:
        if length <= self.side:
            return [0]
        count = math.ceil((length - self.overlap) / (self.side - self.overlap))
        return [step * (length - self.side) // (count - 1) for step in range(count)]


class TiledPredictor(ImagePredictor[LargeImage, Instances]):
    """Finds instances in images of any size; ``pred_masks`` are a list of :class:`PackedMask`.

    Attributes:
        classes: names and category ids of the model's classes.
    """

    def __init__(self, predictor: Predictor, tiling: Tiling) -> None:
        """
        Args:
            predictor: sees the tiles, as many together as its batch size.
            tiling: how images are cut.
        """
        super().__init__(
            device=str(predictor.device),
            precision="fp32",  # the predictor has its own
            batch_size=1,
            channel_order=predictor.channel_order,
        )
        self._predictor, self._tiling = predictor, tiling
        self.classes = predictor.classes

    def read_file(self, file: str | Path) -> LargeImage:
        """Opens an image.

        Raises:
            UserError: it cannot be read.
        """
        return LargeImage(file)

    def prepare(self, image: "ImageLike | LargeImage", name: str = "the image") -> LargeImage:
        """Opens an image.

        Raises:
            UserError: it cannot be read, or its tiles cannot be resized.
        """
        image = image if isinstance(image, LargeImage) else LargeImage(image, self.channel_order)
        first = self._tiling.tiles(*image.shape[:2])[0]
        self._predictor.prepare_rgb(image.part(*first), name)
        return image

    def infer(self, inputs: Sequence[LargeImage]) -> list[Instances]:
        """Finds the instances of images; see :meth:`Predictor.infer`.

        Raises:
            UserError: the GPU has too little memory, or the model finds more than boxes and masks.
            KeyboardInterrupt: :attr:`should_stop` says so between tiles.
        """
        return [self._infer(image) for image in inputs]

    def _infer(self, image: LargeImage) -> Instances:
        height, width = image.shape[:2]
        tiles = self._tiling.tiles(height, width)
        found: list[Found] = []
        with progress(len(tiles), "tile", is_part=True) as bar:
            for number, batch in enumerate(batches(tiles, self._predictor.batch_size)):
                if self.should_stop():
                    raise KeyboardInterrupt
                if number % _BATCHES_BETWEEN_TRIMS == 0:
                    _trim_heap()
                prepared = [self._predictor.prepare_rgb(image.part(*tile)) for tile in batch]
                seen = self._predictor.infer(prepared)
                found += [_placed(one, tile) for one, tile in zip(seen, batch, strict=True)]
                bar.update(len(batch))
        together = stitch(found, (height, width))
        fields = {
            "pred_boxes": Boxes(torch.from_numpy(together.boxes)),
            "scores": torch.from_numpy(together.scores),
            "pred_classes": torch.from_numpy(together.classes),
        }
        if together.masks is not None:
            fields["pred_masks"] = together.masks
        return Instances((height, width), **fields)


def _trim_heap() -> None:
    """Gives memory that is free within the heap back to the system, where the C library is glibc.

    What tiles find is kept between the buffers that computing them takes, and glibc alone would
    let the heap grow with every tile: by 1 GB in a thousand.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _placed(instances: Instances, tile: Tile) -> Found:
    """Moves what a tile has found to its place in the image."""
    others = instances.get_fields().keys() - {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    if others:
        raise UserError(
            f"tiles are put together of boxes and masks, and the model finds {min(others)}, too: "
            f"predict without --tiles"
        )
    shift = np.array([tile.left, tile.top] * 2, np.float32)
    masks = None
    if instances.has("pred_masks"):
        masks = [
            MaskPart.of(mask, tile.top, tile.left).packed() for mask in instances.pred_masks.numpy()
        ]
    return Found(
        tile,
        instances.pred_boxes.tensor.numpy() + shift,
        instances.scores.numpy(),
        instances.pred_classes.numpy(),
        masks,
    )
