"""CVAT's format "CVAT for images 1.1": one XML file, and the images in ``images``.

Boxes have no masks; polygons, ellipses and masks have. Shapes of the same label with the same
``group_id`` are one instance.
"""

import math
import re
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from ...errors import UserError
from ..findings import Findings
from .building import Builder, Split, encoded
from .files import split_name, within
from .xml_tree import XmlFile

_NO_INSTANCES = ("polyline", "points", "skeleton", "cuboid", "tag")


def find(path: Path) -> Path | None:
    """Finds an XML file of CVAT's, or a folder with such files."""
    files = _files(path)
    return path if files and XmlFile(files[0]).root.tag == "annotations" else None


def read(path: Path, findings: Findings) -> dict[str, Split]:
    """Reads a data set; its splits are CVAT's subsets, or files named after splits.

    Args:
        path: what :func:`find` found.
        findings: what is wrong or left out is noted here.

    Raises:
        UserError: it is CVAT's format for videos.
    """
    files = [XmlFile(file) for file in _files(path)]
    names: dict[str, None] = {}
    for xml in files:
        if xml.root.find("track") is not None:
            raise UserError(
                f"{xml.path} is 'CVAT for video', whose images are in a video: export "
                f"'CVAT for images' or 'COCO'"
            )
        labels = (one for one in xml.root.iter("label") if one.find("parent") is None)
        names |= dict.fromkeys(name for one in labels if (name := one.findtext("name")))
    root = path if path.is_dir() else path.parent
    builder = Builder(root, findings, dict(enumerate(names, 1)))
    for xml in files:
        for one in xml.root.findall("image"):
            try:
                _read(builder, xml, one)
            except UserError as error:
                findings.wrong(str(error))
    return builder.splits()


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".xml" else []
    alone = path / "annotations.xml"
    return [alone] if alone.is_file() else sorted(path.glob("*.xml"))


def _read(builder: Builder, xml: XmlFile, element: Element) -> None:
    name, subset = element.get("name"), element.get("subset", "")
    if not name:
        raise UserError(f"{xml.place(element)}: an image without a name")
    folders = ("images", f"images/{subset}", "", subset)
    try:
        paths = [within(builder.root, f"{builder.root}/{folder}/{name}") for folder in folders]
        path = next((path for path in paths if path.is_file()), paths[0])
        size = int(xml.number(element, "width")), int(xml.number(element, "height"))
        split = split_name(subset) or split_name(xml.path.stem)
        image = builder.add_image(split, path, size)
    except UserError as error:
        raise UserError(f"{xml.place(element)}: {error}") from error
    for shape in element:
        if shape.tag in _NO_INSTANCES:
            builder.findings.note("shapes", f"the type {shape.tag!r}", "left out", xml.place(shape))
            continue
        try:
            instance = _parsed(xml, shape, (image.width, image.height))
        except UserError as error:
            builder.findings.wrong(str(error))
            continue
        group = shape.get("group_id") or "0"
        image.add(shape.get("label", ""), **instance, group=None if group == "0" else group)


def _parsed(xml: XmlFile, shape: Element, size: tuple[int, int]) -> dict[str, Any]:
    """The box or the mask of a shape, in pixels."""
    place = xml.place(shape)
    if not shape.get("label"):
        raise UserError(f"{place}: a {shape.tag} without a label")

    def numbers(*names: str) -> list[float]:
        return [xml.number(shape, name) for name in names]

    if shape.tag == "box":
        left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
        angle = math.radians(xml.number(shape, "rotation") if shape.get("rotation") else 0)
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
        turned = _turned(corners, ((left + right) / 2, (top + bottom) / 2), angle)
        xs, ys = turned[::2], turned[1::2]
        return {"box": (min(xs), min(ys), max(xs), max(ys))}
    if shape.tag == "polygon":
        pairs = re.findall(r"[^,;]+", shape.get("points", ""))
        try:
            points = [float(text) for text in pairs]
        except ValueError as error:
            raise UserError(f"{place}: 'points' must be x,y;x,y;…") from error
        if not points or len(points) % 2 or not all(map(math.isfinite, points)):
            raise UserError(f"{place}: 'points' must be x,y;x,y;…")
        return {"polygons": [points]}
    if shape.tag == "ellipse":
        x, y, width, height = numbers("cx", "cy", "rx", "ry")
        angle = math.radians(xml.number(shape, "rotation") if shape.get("rotation") else 0)
        turns = (2 * math.pi * corner / 64 for corner in range(64))
        edge = [(x + width * math.cos(turn), y + height * math.sin(turn)) for turn in turns]
        return {"polygons": [_turned(edge, (x, y), angle)]}
    if shape.tag == "mask":
        left, top, width, height = map(int, numbers("left", "top", "width", "height"))
        mask = _mask(shape.get("rle", ""), place, (left, top, width, height), size)
        return {"box": (left, top, left + width, top + height), "rle": encoded(mask)}
    raise UserError(f"{place}: {shape.tag!r} is no shape of CVAT's")


def _turned(points: Any, centre: tuple[float, float], angle: float) -> list[float]:
    """Turns points around a centre; y leads down, so that a positive angle is clockwise."""
    if not angle:
        return [value for point in points for value in point]
    cos, sin = math.cos(angle), math.sin(angle)
    return [
        value
        for x, y in ((x - centre[0], y - centre[1]) for x, y in points)
        for value in (centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos)
    ]


def _mask(
    text: str, place: str, box: tuple[int, int, int, int], size: tuple[int, int]
) -> np.ndarray:
    """The pixels (H, W) of a mask, whose runs go through the rows of its box."""
    left, top, width, height = box
    fits = left >= 0 and top >= 0 and left + width <= size[0] and top + height <= size[1]
    if not fits or width < 1 or height < 1:
        raise UserError(f"{place}: a mask that leads out of its image")
    words = [word.strip() for word in text.split(",")]
    runs = [
        int(word) if word.isascii() and word.isdigit() and len(word) < 12 else -1 for word in words
    ]
    if min(runs) < 0 or sum(runs) != width * height:
        raise UserError(f"{place}: the runs of a mask, 'rle', are not those of its box")
    whole = np.zeros(size[::-1], bool)
    values = np.arange(len(runs)) % 2 == 1
    whole[top : top + height, left : left + width] = np.repeat(values, runs).reshape(height, width)
    return whole
