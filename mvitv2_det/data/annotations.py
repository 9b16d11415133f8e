"""Checks of single annotations in COCO's format: what is wrong, and what is merely odd.

What is wrong would end training or evaluation hours later, or make pycocotools, which is written in
C and trusts its input, read and write beyond its memory. What is odd can be put right without a
guess at what was meant, or left out.
"""

import math
from typing import Any

from ..errors import UserError


class Odd(Exception):
    """Raised by :func:`repaired` for an annotation that is best left out; says what is odd."""


def repaired(
    annotation: dict[str, Any], width: int, height: int, *, has_masks: bool = False
) -> tuple[dict[str, Any], str]:
    """Checks an annotation and puts right what is odd.

    Args:
        annotation: with ``bbox``, ``area`` and ``iscrowd``, and maybe ``segmentation``.
        width, height: of its image.
        has_masks: whether the instances have a ``segmentation``: then pycocotools needs one of
            crowds, too.

    Returns:
        the annotation, a new one if something was odd, and what that was, empty if nothing.

    Raises:
        UserError: it is wrong; the message is what follows the annotation's name.
        Odd: it is so odd that there is nothing to put right: its box or mask covers no pixel.
    """
    changes: dict[str, Any] = {}
    odd: list[str] = []
    crowd = annotation["iscrowd"]
    if crowd not in (0, 1):  # true, false, 0.0 and 1.0 are among them
        raise UserError(f"has an 'iscrowd' that is neither 0 nor 1 but {crowd!r}")
    if type(crowd) is not int:
        changes["iscrowd"] = int(crowd)
        odd.append(f"an 'iscrowd' that is {crowd!r}")
    box = _box(annotation["bbox"])
    x, y, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
    inside = max(x, 0.0), max(y, 0.0), min(right, float(width)), min(bottom, float(height))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise Odd("a box that covers nothing of the image")
    # COCO's own boxes end a pixel outside here and there.
    if max(-x, -y, right - width, bottom - height) > 1:
        changes["bbox"] = [inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1]]
        odd.append("a box that is partly outside of the image")
    area = annotation["area"]
    if not (_is_number(area) and area >= 0):
        changes["area"] = (inside[2] - inside[0]) * (inside[3] - inside[1])
        odd.append(f"an 'area' that is {area!r}")
    mask = annotation.get("segmentation")
    if isinstance(mask, dict):
        _check_rle(mask, width, height)
    elif isinstance(mask, list):
        kept = _polygons(mask)
        if len(kept) != len(mask):
            if not kept:
                raise Odd("polygons of fewer than three points alone")
            changes["segmentation"] = kept
            odd.append("a polygon of fewer than three points")
    elif mask is not None:
        raise UserError(f"has a 'segmentation' that is a {type(mask).__name__}: {mask!r}")
    if crowd and has_masks and not mask:
        left, top, right, bottom = inside
        changes["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
        odd.append("an 'iscrowd' that is 1 and no 'segmentation', for which the box stands")
    return {**annotation, **changes}, ", ".join(odd)


def _box(box: object) -> list[float]:
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        raise UserError(f"has no box [x, y, width, height] but {box!r}")
    return box


def _polygons(mask: list[Any]) -> list[list[float]]:
    """The polygons that have an area, of [x1, y1, x2, y2, …] each."""
    for polygon in mask:
        if not (isinstance(polygon, list) and all(map(_is_number, polygon))):
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


def _is_number(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12
    ) and math.isfinite(value)
