"""Putting together what overlapping tiles of an image have found.

Two tiles see the same instance where what they have found agrees in the strip that both see. NMS
over the whole image would instead compare a whole instance with a part of it, or would drop one of
two neighbours. Within a tile the model has judged already: what one tile finds twice stays two.

An instance that an edge of its tile cuts gives way to the same one where it is whole. Where it is
whole nowhere, being larger than the overlap, its parts are united.

Axes: N instances; boxes are left, top, right, bottom in pixels of the image.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..visualize.masks import MaskPart, PackedMask, union

LEAST_IOU = 0.5  # in the strip that both tiles see
LEAST_SHARE = 0.7  # of what is seen of a cut instance, that lies in the other
_EDGE = 0.01  # of a tile's side: what ends so near to its edge may go on behind it


class Tile(NamedTuple):
    """A rectangle of the image, in pixels."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class Found:
    """Instances, those of a tile or of the image.

    Attributes:
        tile: where they were looked for.
        boxes: (N, 4) float32.
        scores: (N,) float32.
        classes: (N,) int64.
        masks: N of them; None of a model without.
    """

    tile: Tile
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: list[PackedMask] | None


def stitch(found: list[Found], size: tuple[int, int]) -> Found:
    """Puts together what the tiles of an image have found.

    Args:
        found: for each tile.
        size: H and W of the image.

    Returns:
        by descending score; of one tile, all of it as it is.
    """
    image = Tile(0, 0, *size)
    if len(found) == 1:
        return Found(image, *_fields(found[0]))
    together = _joined(found, image)
    tiles = np.repeat(np.arange(len(found)), [len(one.scores) for one in found])
    cut = np.concatenate([_is_cut(one, image) for one in found])
    matches = _Matches(found, together, cut)
    boxes, masks = together.boxes.copy(), together.masks and list(together.masks)
    taken, kept = np.zeros(len(cut), bool), []
    for seed in np.lexsort((-together.scores, cut)).tolist():
        if taken[seed]:
            continue
        group = matches.group(seed, tiles, cut, taken)
        taken[group] = True
        kept.append(seed)
        if cut[seed] and len(group) > 1:
            boxes[seed, :2] = together.boxes[group, :2].min(0)
            boxes[seed, 2:] = together.boxes[group, 2:].max(0)
            if masks:
                masks[seed] = union([masks[member].part() for member in group]).packed()
    order = sorted(kept, key=lambda index: -together.scores[index])
    return Found(
        image,
        boxes[order],
        together.scores[order],
        together.classes[order],
        masks and [masks[index] for index in order],
    )


class _Matches:
    """Which instances of different tiles are the same."""

    def __init__(self, found: list[Found], together: Found, cut: np.ndarray) -> None:
        self._pairs: dict[int, list[tuple[int, float]]] = {}
        starts = np.cumsum([0] + [len(one.scores) for one in found])
        for a, b, strip in _overlapping([one.tile for one in found]):
            first = np.arange(starts[a], starts[a + 1])
            second = np.arange(starts[b], starts[b + 1])
            for i, j in _candidates(together, first, second, strip):
                shared = _shared(together, i, j, strip, cut)
                if shared:
                    self._pairs.setdefault(i, []).append((j, shared))
                    self._pairs.setdefault(j, []).append((i, shared))

    def group(self, seed: int, tiles: np.ndarray, cut: np.ndarray, taken: np.ndarray) -> list[int]:
        """Finds what is the same as an instance, that being the first.

        Of each tile one instance belongs to it, and to a whole one also all its parts.

        Args:
            seed: number of the instance; whole ones come before those that are cut.
            tiles: (N,) number of the tile of each.
            cut: (N,) bool.
            taken: (N,) bool, which belong to others already.
        """
        group, present = [seed], {tiles[seed]}
        for member in group:
            neighbours = sorted(self._pairs.get(member, []), key=lambda pair: -pair[1])
            for other, _ in neighbours:
                is_part = cut[other] and not cut[seed]
                if taken[other] or other in group or (tiles[other] in present and not is_part):
                    continue
                group.append(other)
                if not is_part:
                    present.add(tiles[other])
            if not cut[seed]:
                break  # All that belongs to a whole instance overlaps it.
        return group


def _overlapping(tiles: list[Tile]) -> Iterator[tuple[int, int, Tile]]:
    """Yields pairs of tiles that share pixels, and which."""
    edges = np.array(tiles)
    for a, tile in enumerate(tiles):
        others = edges[a + 1 :]
        upper, lower = np.maximum(others[:, :2], tile[:2]), np.minimum(others[:, 2:], tile[2:])
        for b in np.flatnonzero((lower > upper).all(1)).tolist():
            yield a, a + 1 + b, Tile(*upper[b].tolist(), *lower[b].tolist())


def _candidates(
    together: Found, first: np.ndarray, second: np.ndarray, strip: Tile
) -> Iterator[tuple[int, int]]:
    """Yields pairs of one class whose boxes overlap in the strip by half of the smaller."""
    edges = np.array([strip.left, strip.top, strip.right, strip.bottom])
    a, b = (_clip(together.boxes[numbers], edges) for numbers in (first, second))
    shared = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    shared = shared.clip(0).prod(2)
    smaller = np.minimum(_areas(a)[:, None], _areas(b))
    same = together.classes[first][:, None] == together.classes[second]
    for i, j in np.argwhere(same & (shared > 0) & (shared >= 0.5 * smaller)).tolist():
        yield int(first[i]), int(second[j])


def _shared(together: Found, i: int, j: int, strip: Tile, cut: np.ndarray) -> float:
    """The area that two instances share in the strip; 0 if they are not the same."""
    if together.masks is None:
        edges = np.array([strip.left, strip.top, strip.right, strip.bottom])
        a, b = _clip(together.boxes[[i, j]], edges)
        shared = float((np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0).prod())
        areas = float(_areas(a)), float(_areas(b))
    else:
        masks = [together.masks[i].part(), together.masks[j].part()]
        window = _window(masks, strip)
        seen = [mask.within(*window) for mask in masks]
        shared = float(np.count_nonzero(seen[0] & seen[1]))
        areas = float(np.count_nonzero(seen[0])), float(np.count_nonzero(seen[1]))
    if shared >= LEAST_IOU * (areas[0] + areas[1] - shared):
        return shared
    parts = [area for area, one in zip(areas, (i, j), strict=True) if cut[one]]
    return shared if any(shared >= LEAST_SHARE * area > 0 for area in parts) else 0.0


def _window(masks: list[MaskPart], strip: Tile) -> Tile:
    """The part of a strip in which masks lie."""
    bottom = max(mask.top + mask.pixels.shape[0] for mask in masks)
    right = max(mask.left + mask.pixels.shape[1] for mask in masks)
    top, left = min(mask.top for mask in masks), min(mask.left for mask in masks)
    top, left = max(top, strip.top), max(left, strip.left)
    return Tile(top, left, max(top, min(bottom, strip.bottom)), max(left, min(right, strip.right)))


def _is_cut(found: Found, image: Tile) -> np.ndarray:
    """(N,) bool: which end at an edge of their tile that is none of the image's."""
    tile = found.tile
    near = _EDGE * max(tile.bottom - tile.top, tile.right - tile.left)
    cut = np.zeros(len(found.scores), bool)
    edges, ends = ((one.left, one.top, one.right, one.bottom) for one in (tile, image))
    for side, (edge, end) in enumerate(zip(edges, ends, strict=True)):
        if edge != end:
            cut |= np.abs(found.boxes[:, side] - edge) <= max(near, 2)
    return cut


def _joined(found: list[Found], image: Tile) -> Found:
    masks = None
    if all(one.masks is not None for one in found):
        masks = [mask for one in found for mask in one.masks or ()]
    boxes, scores, classes = (
        np.concatenate([getattr(one, name) for one in found])
        for name in ("boxes", "scores", "classes")
    )
    return Found(image, boxes, scores, classes, masks)


def _fields(found: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[PackedMask] | None]:
    return found.boxes, found.scores, found.classes, found.masks


def _clip(boxes: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [np.clip(boxes[:, :2], edges[:2], edges[2:]), np.clip(boxes[:, 2:], edges[:2], edges[2:])],
        1,
    )


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)
