"""LabelMe's format: a json file for each image.

Polygons, circles and masks are instances with masks; a rectangle is a box, of which no mask is
known. Shapes of the same label with the same ``group_id`` are one instance, in LabelMe's own words.
"""

import base64
import binascii
import io
import math
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from ..annotations import is_number
from ..coco_records import load_json
from ..findings import Findings
from .building import Builder, Split, encoded
from .files import kind_of_json, split_folders, within

_NO_INSTANCES = ("point", "points", "line", "linestrip")
_LEAST_POINTS = {"polygon": 1, "rectangle": 2, "circle": 2, "mask": 2}


def find(path: Path) -> Path | None:
    """Finds the folder, if the first json file in it or in one of its splits is LabelMe's."""
    if not path.is_dir():
        return None
    for folder in split_folders(path).values():
        if files := sorted(folder.rglob("*.json")):
            return path if kind_of_json(files[0]) == "labelme" else None
    return None


def read(root: Path, findings: Findings) -> dict[str, Split]:
    """Reads a data set.

    Args:
        root: what :func:`find` found.
        findings: what is wrong or left out is noted here.
    """
    builder = Builder(root, findings)
    for split, folder in split_folders(root).items():
        for file in sorted(folder.rglob("*.json")):
            try:
                _read(builder, split, file)
            except UserError as error:
                findings.wrong(str(error))
    return builder.splits()


def _read(builder: Builder, split: str, file: Path) -> None:
    content = load_json(str(file))
    if not (isinstance(content, dict) and isinstance(content.get("shapes"), list)):
        raise UserError(f"{file} is not LabelMe's: it has no list 'shapes'")
    name = content.get("imagePath")
    if not isinstance(name, str) or not name:
        raise UserError(f"{file}: 'imagePath' must name the image, got {name!r}")
    # Windows' LabelMe writes its own separators.
    path = within(builder.root, file.parent / PureWindowsPath(name).as_posix())
    if not path.is_file():
        path = file.parent / PureWindowsPath(name).name
    size = content.get("imageWidth"), content.get("imageHeight")
    known = all(type(side) is int for side in size)
    image = builder.add_image(split, path, size if known else None)  # type: ignore[arg-type]
    for number, shape in enumerate(content["shapes"]):
        place = f"{file}: shapes[{number}]"
        try:
            kind = shape.get("shape_type") or "polygon" if isinstance(shape, dict) else None
            if isinstance(kind, str) and kind in _NO_INSTANCES:
                builder.findings.note("shapes", f"the type {kind!r}", "left out", place)
                continue
            label, instance = _parsed(shape, kind, (image.width, image.height))
        except UserError as error:
            builder.findings.wrong(f"{place} {error}")
            continue
        image.add(label, **instance)


def _parsed(shape: Any, kind: object, size: tuple[int, int]) -> tuple[str, dict[str, Any]]:
    """The label of a shape, and its box or mask in pixels."""
    if not isinstance(kind, str) or kind not in _LEAST_POINTS:
        raise UserError(f"is of the type {kind!r}, which LabelMe does not have")
    label, points = shape.get("label"), shape.get("points")
    if not isinstance(label, str) or not label:
        raise UserError(f"has no 'label' but {label!r}")
    fine = isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point))
        for point in points
    )
    if not fine or len(points) < _LEAST_POINTS[kind]:
        raise UserError(f"has no 'points' [[x, y], …] of a {kind}")
    flat = [float(number) for point in points for number in point]
    xs, ys = flat[::2], flat[1::2]
    box = min(xs), min(ys), max(xs), max(ys)
    group = shape.get("group_id")
    group = group if isinstance(group, int | str) else None
    if kind == "polygon":
        return label, {"polygons": [flat], "group": group}
    if kind == "circle":
        return label, {"polygons": [_circle(*flat[:4])], "group": group}
    if kind == "mask":
        return label, {
            "box": (box[0], box[1], box[2] + 1, box[3] + 1),
            "rle": encoded(_mask(shape.get("mask"), box, size)),
        }
    return label, {"box": box}


def _circle(x: float, y: float, edge_x: float, edge_y: float) -> list[float]:
    """A polygon that is nowhere more than a tenth of a pixel within a circle: centre and edge."""
    radius = math.hypot(edge_x - x, edge_y - y)
    if radius <= 0.5:
        raise UserError("is a circle of less than a pixel")
    corners = max(12, math.ceil(math.pi / math.acos(1 - 0.1 / radius)))
    angles = (2 * math.pi * corner / corners for corner in range(corners))
    return [
        value
        for angle in angles
        for value in (x + radius * math.cos(angle), y + radius * math.sin(angle))
    ]


def _mask(text: object, box: tuple[float, ...], size: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W) of a mask: a PNG of those within its box, as base64."""
    left, top, right, bottom = (round(side) for side in box)
    shape = right - left + 1, bottom - top + 1
    if left < 0 or top < 0 or right >= size[0] or bottom >= size[1]:
        raise UserError("has a mask that leads out of its image")
    try:
        data = base64.b64decode(text if isinstance(text, str) else "", validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != shape:
                raise UserError(f"has a mask of {image.size} pixels for a box of {shape}")
            pixels = np.asarray(image.convert("L")) > 0
    except (binascii.Error, OSError, SyntaxError) as error:
        raise UserError(f"has a mask that is no PNG: {error}") from error
    whole = np.zeros(size[::-1], bool)
    whole[top : bottom + 1, left : right + 1] = pixels
    return whole
