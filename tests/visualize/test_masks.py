"""Masks as parts of an image, against pycocotools on whole masks."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mvitv2_det.visualize.masks import MaskPart, union

HEIGHT, WIDTH = 13, 17


def encoded(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def whole(part: MaskPart) -> np.ndarray:
    return part.within(0, 0, HEIGHT, WIDTH)


def masks() -> list[np.ndarray]:
    """(HEIGHT, WIDTH) bool: random ones of all densities, and those at edges."""
    rng = np.random.default_rng(0)
    found = [rng.random((HEIGHT, WIDTH)) < share for share in (0.01, 0.3, 0.9) for _ in range(20)]
    for rows, columns in (
        (slice(None), slice(None)),
        (slice(None), slice(3, 6)),
        (slice(None), slice(0, 1)),
        (slice(0, 4), slice(None)),
        (slice(-1, None), slice(-1, None)),
        (slice(0, 1), slice(0, 1)),
        (slice(5, 5), slice(None)),
    ):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[rows, columns] = True
        found.append(mask)
    return found


@pytest.mark.parametrize("mask", masks())
def test_rle_is_that_of_the_whole_mask(mask):
    part = MaskPart.of(mask)
    assert part.rle(HEIGHT, WIDTH) == encoded(mask)
    assert (whole(part) == mask).all()
    assert (whole(part.packed().part()) == mask).all()
    assert part.area == mask.sum() and part.pixels.size <= mask.size
    assert (whole(MaskPart.of_segmentation(encoded(mask), HEIGHT, WIDTH)) == mask).all()


@pytest.mark.parametrize("shift", [0, -6, 9.5])
def test_polygons(shift):
    rng = np.random.default_rng(1)
    for _ in range(50):
        polygons = [(rng.uniform(0, 12, 8) + shift).tolist() for _ in range(2)]
        rles = coco_mask.frPyObjects(polygons, HEIGHT, WIDTH)
        expected = coco_mask.decode(coco_mask.merge(rles))
        part = MaskPart.of_segmentation(polygons, HEIGHT, WIDTH)
        assert (whole(part) == expected).all()


def test_counts_that_are_not_compressed():
    segmentation = {"size": [HEIGHT, WIDTH], "counts": [5, 3, HEIGHT * WIDTH - 8]}
    part = MaskPart.of_segmentation(segmentation, HEIGHT, WIDTH)
    assert (part.top, part.left, part.pixels.tolist()) == (5, 0, [[1], [1], [1]])


def test_union():
    first, second = masks()[0], masks()[1]
    together = union([MaskPart.of(first), MaskPart.of(second), MaskPart.of(first & False)])
    assert (whole(together) == (first | second)).all()


def test_a_hole_has_an_outline_of_its_own():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[2:10, 3:12] = True
    mask[4:8, 5:9] = False
    corners = {tuple(map(tuple, line[:, 0].tolist())) for line in MaskPart.of(mask).contours()}
    assert len(corners) == 2
    assert ((3, 2), (3, 9), (11, 9), (11, 2)) in corners


def test_nothing_vanishes_from_a_mask_that_is_shrunk():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[6, 8] = True
    assert MaskPart.of(mask).scaled(0.1).area == 1
    assert MaskPart.of(mask).scaled(3).area == 9
