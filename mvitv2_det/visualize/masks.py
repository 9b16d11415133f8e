"""Masks that are stored as the part of the image that they cover.

A hundred masks of an image of 4000×3000 take 1.2 GB as a whole, and a few MB as parts.

Axes: H × W pixels of the image, h × w of the part; RLE, as COCO's, goes down columns.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask


@dataclass(frozen=True)
class MaskPart:
    """A mask, cut to the smallest rectangle that holds it.

    Attributes:
        top: pixels above the part.
        left: pixels to the left of the part.
        pixels: (h, w) uint8, 0 or 1; (0, 0) of an empty mask.
    """

    top: int
    left: int
    pixels: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, top: int = 0, left: int = 0) -> "MaskPart":
        """Cuts a mask out.

        Args:
            mask: (h, w), bool or uint8; another number than 0 is inside.
            top, left: where it lies in the image.
        """
        mask = np.ascontiguousarray(mask)
        if not mask.size:
            return cls(top, left, np.zeros((0, 0), np.uint8))
        x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
        pixels = (mask[y : y + height, x : x + width] != 0).astype(np.uint8)
        return cls(top + y, left + x, pixels)

    @classmethod
    def of_segmentation(cls, segmentation: Any, height: int, width: int) -> "MaskPart":
        """Reads a mask in any of the forms of Detectron2's dataset format.

        Args:
            segmentation: polygons, RLE (compressed or not), a mask (H, W), or a part.
            height, width: H and W.
        """
        if isinstance(segmentation, MaskPart):
            return segmentation
        if isinstance(segmentation, PackedMask):
            return segmentation.part()
        if isinstance(segmentation, dict):
            if isinstance(segmentation["counts"], list):
                segmentation = coco_mask.frPyObjects(segmentation, *segmentation["size"])
            return cls.of(coco_mask.decode(segmentation))
        if isinstance(segmentation, np.ndarray):
            return cls.of(segmentation)
        return cls._of_polygons(segmentation, height, width)

    @classmethod
    def _of_polygons(cls, polygons: list[Any], height: int, width: int) -> "MaskPart":
        points = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons]
        corners = np.concatenate([np.zeros((0, 2)), *points])
        if not len(corners):
            return cls.of(np.zeros((0, 0), np.uint8))
        # Only around the polygons: a mask of the whole image takes long to fill.
        left, top = np.clip(np.floor(corners.min(0)), 0, [width, height]).astype(int).tolist()
        right, bottom = np.clip(np.ceil(corners.max(0)) + 1, 0, [width, height]).astype(int)
        if right <= left or bottom <= top:
            return cls.of(np.zeros((0, 0), np.uint8))
        moved = [(polygon - [left, top]).ravel().tolist() for polygon in points]
        rles = coco_mask.frPyObjects(moved, int(bottom - top), int(right - left))
        return cls.of(coco_mask.decode(coco_mask.merge(rles)), top, left)

    @property
    def area(self) -> int:
        """Pixels inside."""
        return int(np.count_nonzero(self.pixels))

    def within(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """The mask in a rectangle of the image: (bottom - top, right - left) uint8."""
        window = np.zeros((bottom - top, right - left), np.uint8)
        height, width = self.pixels.shape
        y0, y1 = max(top, self.top), min(bottom, self.top + height)
        x0, x1 = max(left, self.left), min(right, self.left + width)
        if y0 < y1 and x0 < x1:
            window[y0 - top : y1 - top, x0 - left : x1 - left] = self.pixels[
                y0 - self.top : y1 - self.top, x0 - self.left : x1 - self.left
            ]
        return window

    def scaled(self, scale: float) -> "MaskPart":
        """The mask of an image that is resized by ``scale``; nothing vanishes from it."""
        height, width = self.pixels.shape
        if scale == 1 or not height:
            return self
        top, left = round(self.top * scale), round(self.left * scale)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        resized = cv2.resize(self.pixels * 255, size, interpolation=_interpolation(scale))
        return MaskPart(top, left, (resized > 127 if scale > 1 else resized > 0).astype(np.uint8))

    def packed(self) -> "PackedMask":
        """The same in a few hundred bytes."""
        counts = coco_mask.encode(np.asfortranarray(self.pixels))["counts"]
        return PackedMask(self.top, self.left, self.pixels.shape, counts)

    def contours(self) -> list[np.ndarray]:
        """Outlines of the regions and of their holes, each (points, 1, 2) of x and y, int32."""
        if not self.pixels.size:
            return []
        found, _ = cv2.findContours(
            self.pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(self.left, self.top)
        )
        return list(found)

    def rle(self, height: int, width: int) -> dict[str, Any]:
        """COCO's compressed RLE in an image of H × W, with text for its counts."""
        h, w = self.pixels.shape
        # Where runs begin and end, down each column of the part and then of the image.
        edges = np.diff(np.pad(self.pixels.T, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        columns, rows = np.nonzero(edges)
        places = (columns + self.left).astype(np.int64) * height + rows + self.top
        if h == height and w > 1:
            # A run that ends a column and one that begins the next are the same run.
            places = places[_not_doubled(places)]
        counts = np.diff(np.concatenate([[0], places, [height * width]])).tolist()
        if counts[-1] == 0 and len(counts) > 1:
            counts.pop()
        size = [height, width]
        compressed = coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)
        return {"size": size, "counts": compressed["counts"].decode()}


@dataclass(frozen=True)
class PackedMask:
    """A :class:`MaskPart` as COCO's compressed RLE: of an image there may be a hundred thousand.

    Attributes:
        top: pixels above the part.
        left: pixels to the left of the part.
        shape: h and w of the part.
        counts: of its RLE.
    """

    top: int
    left: int
    shape: tuple[int, ...]
    counts: bytes

    def part(self) -> MaskPart:
        """The mask itself."""
        if not all(self.shape):
            return MaskPart(self.top, self.left, np.zeros((0, 0), np.uint8))
        pixels = coco_mask.decode({"size": list(self.shape), "counts": self.counts})
        return MaskPart(self.top, self.left, pixels)


def union(parts: list[MaskPart]) -> MaskPart:
    """The mask that covers what any of these does."""
    parts = [part for part in parts if part.pixels.size] or parts[:1]
    top, left = min(part.top for part in parts), min(part.left for part in parts)
    bottom = max(part.top + part.pixels.shape[0] for part in parts)
    right = max(part.left + part.pixels.shape[1] for part in parts)
    pixels = np.zeros((bottom - top, right - left), np.uint8)
    for part in parts:
        pixels |= part.within(top, left, bottom, right)
    return MaskPart(top, left, pixels)


def _interpolation(scale: float) -> int:
    return cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA


def _not_doubled(places: np.ndarray) -> np.ndarray:
    same = places[1:] == places[:-1]
    return ~(np.append(same, False) | np.insert(same, 0, False))
