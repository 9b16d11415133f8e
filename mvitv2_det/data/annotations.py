"""Checks of single annotations in COCO's format: what is wrong, and what is merely odd.

What is wrong would end training or evaluation hours later, or make pycocotools, which is written in
C and trusts its input, read and write beyond its memory. What is odd can be put right without a
guess at what was meant, or left out.
"""

import math
from typing import Any

from pycocotools import mask as coco_mask

from ..errors import UserError

_FARTHEST = 10  # coordinates of polygons, in sides of the image


class Odd(Exception):
    """Raised by :func:`repaired` for an annotation that is best left out; says what is odd."""


def repaired(
    annotation: dict[str, Any], width: int, height: int, *, masks: bool = True
) -> tuple[dict[str, Any], str]:
    """Checks an annotation and puts right what is odd.

    ``iscrowd`` is 0 and ``area`` that of the mask, or else of the box, where there is none: that is
    not odd.

    Args:
        annotation: with ``bbox``, and maybe ``segmentation``, ``area`` and ``iscrowd``.
        width, height: of its image.
        masks: whether it needs a mask, as one among others that have one does.

    Returns:
        the annotation, a new one if something was changed, and what was odd, empty if nothing.

    Raises:
        UserError: it is wrong; the message is what follows the annotation's name.
        Odd: it is so odd that there is nothing to put right: its box or mask covers no pixel.
    """
    changes: dict[str, Any] = {}
    odd: list[str] = []
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):  # true, false, 0.0 and 1.0 are among them
        raise UserError(f"has an 'iscrowd' that is neither 0 nor 1 but {crowd!r}")
    if type(crowd) is not int:
        odd.append(f"an 'iscrowd' that is {crowd!r}")
    if type(annotation.get("iscrowd")) is not int:
        changes["iscrowd"] = int(crowd)
    box = _box(annotation.get("bbox"))
    x, y, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    inside = max(x, 0.0), max(y, 0.0), min(right, float(width)), min(bottom, float(height))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise Odd("a box that covers nothing of the image")
    # COCO's own boxes end a pixel outside here and there.
    if max(-x, -y, right - width, bottom - height) > 1:
        changes["bbox"] = [inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1]]
        odd.append("a box that is partly outside of the image")
    mask, odd_mask = _sound_mask(annotation.get("segmentation"), width, height)
    if not mask and masks:
        raise Odd(odd_mask or "no mask, although others have one")
    if odd_mask:
        odd.append(odd_mask)
    if not mask and "segmentation" in annotation:
        annotation = {key: value for key, value in annotation.items() if key != "segmentation"}
    elif odd_mask:
        changes["segmentation"] = mask
    area = annotation.get("area")
    if not (is_number(area) and area >= 0):  # type: ignore[operator]
        box_area = (inside[2] - inside[0]) * (inside[3] - inside[1])
        changes["area"] = mask_area(mask, width, height) if mask else box_area
        if area is not None:
            odd.append(f"an 'area' that is {area!r}")
    return {**annotation, **changes} if changes else annotation, ", ".join(odd)


def mask_area(mask: list[Any] | dict[str, Any], width: int, height: int) -> float:
    """Counts the pixels of a sound mask, by COCO's own code."""
    if isinstance(mask, dict) and isinstance(mask["counts"], str):
        return float(coco_mask.area(mask))
    encoded = coco_mask.frPyObjects(mask, height, width)
    return float(coco_mask.area(coco_mask.merge(encoded) if isinstance(mask, list) else encoded))


def has_mask(annotation: object) -> bool:
    """Whether an annotation, as found in a file, has something that could be a mask."""
    mask = annotation.get("segmentation") if isinstance(annotation, dict) else None
    if isinstance(mask, list):
        return any(isinstance(polygon, list) and len(polygon) >= 6 for polygon in mask)
    return isinstance(mask, dict)


def _sound_mask(
    mask: object, width: int, height: int
) -> tuple[list[list[float]] | dict[str, Any] | None, str]:
    """Checks a ``segmentation``.

    Returns:
        the mask without what is odd, or None if nothing remains; and what was odd.

    Raises:
        UserError: it is wrong.
    """
    if mask is None or mask == []:
        return None, "" if mask is None else "an empty 'segmentation'"
    if isinstance(mask, dict):
        _check_rle(mask, width, height)
        return mask, ""
    if not isinstance(mask, list):
        raise UserError(f"has a 'segmentation' that is a {type(mask).__name__}: {mask!r}")
    kept = _polygons(mask)
    # COCO's code follows an outline step by step, wherever it leads.
    farthest = _FARTHEST * max(width, height)
    if any(max(line) > farthest or min(line) < -farthest for line in kept):
        raise UserError("has a polygon that leads far outside of its image")
    if not kept:
        return None, "polygons of fewer than three points alone"
    return kept, "" if len(kept) == len(mask) else "a polygon of fewer than three points"


def _box(box: object) -> list[float]:
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        raise UserError(f"has no box [x, y, width, height] but {box!r}")
    return box


def _polygons(mask: list[Any]) -> list[list[float]]:
    """The polygons that have an area, of [x1, y1, x2, y2, …] each."""
    for polygon in mask:
        if not (isinstance(polygon, list) and all(map(is_number, polygon))):
            raise UserError(f"has a 'segmentation' that is no list of polygons but {mask!r}")
        if len(polygon) % 2:
            raise UserError(f"has a polygon with an odd number of coordinates, {len(polygon)}")
    return [polygon for polygon in mask if len(polygon) >= 6]


def _check_rle(mask: dict[str, Any], width: int, height: int) -> None:
    """Checks a run-length encoded mask, whose runs must be those of all pixels of the image."""
    size, counts = mask.get("size"), mask.get("counts")
    if size != [height, width]:
        raise UserError(
            f"has a run-length encoded mask of the size {size!r}, but its image is "
            f"[{height}, {width}] high and wide"
        )
    if isinstance(counts, str):
        counts = _decoded(counts)
    if not (isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts)):
        raise UserError(f"has a run-length encoded mask without runs but {counts!r}")
    if sum(counts) != width * height:
        raise UserError(
            f"has a run-length encoded mask of {sum(counts)} pixels, but its image has "
            f"{width * height}"
        )


def _decoded(text: str) -> list[int]:
    """The runs in COCO's compressed text: five bits a letter, lowest first, and differences.

    From the fourth run on, the text has the difference to the run two before.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise UserError(f"has a run-length encoded mask with the letter {letter!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise UserError("has a run-length encoded mask that is cut off")
    return counts


def is_number(value: object) -> bool:
    """Whether a value is a number that can be a coordinate."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
    ) and math.isfinite(value)
