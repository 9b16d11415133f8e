"""Pascal VOC's format: an XML file for each image, beside it or in ``Annotations``.

Boxes are of pixels counted from 1, the last included, as VOC's own are and as Detectron2 reads
them. A box of numbers with a point counts no pixels: it is taken as it is, as CVAT writes it. Masks
are polygons in the XML, as Roboflow writes them, or the images of ``SegmentationObject``, whose
colour n marks the n-th object.
"""

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from PIL import Image

from ...errors import UserError
from ..findings import Findings
from ..mapper import naming_unreadable_image
from .building import Builder, Split, encoded
from .files import IMAGE_SUFFIXES, WHOLE, read_text, split_folders, split_name, within
from .xml_tree import XmlFile

_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "")


def find(path: Path) -> Path | None:
    """Finds the folder that holds ``Annotations``, or XML files beside images, or such splits."""
    if not path.is_dir():
        return None
    for folder in (path, *sorted(path.glob("VOC*")), *sorted(path.glob("VOCdevkit/VOC*"))):
        if any((folder / "Annotations").glob("*.xml")):
            return folder
    for folder in split_folders(path).values():
        if file := next(folder.glob("*.xml"), None):
            return path if XmlFile(file).root.tag == "annotation" else None
    return None


def read(root: Path, findings: Findings) -> dict[str, Split]:
    """Reads a data set.

    Args:
        root: what :func:`find` found.
        findings: what is wrong is noted here.
    """
    builder = Builder(root, findings)
    for split, files in _files(root, findings).items():
        for file in files:
            try:
                _read(builder, split, file)
            except UserError as error:
                findings.wrong(str(error))
    return builder.splits()


def _files(root: Path, findings: Findings) -> dict[str, list[Path]]:
    """The XML files of each split: those that ``ImageSets`` lists, or else those of folders."""
    folder = root / "Annotations"
    if not folder.is_dir():
        return {split: sorted(of.glob("*.xml")) for split, of in split_folders(root).items()}
    lists = (root / "ImageSets" / kind for kind in ("Main", "Segmentation", ""))
    for parent in lists:
        files: dict[str, list[Path]] = {}
        for file in sorted(parent.glob("*.txt")):
            if split := split_name(file.stem):
                stems = [line.split()[0] for line in read_text(file).splitlines() if line.strip()]
                files[split] = [within(folder, f"{stem}.xml") for stem in stems]
        if files:
            return files
    return {WHOLE: sorted(folder.glob("*.xml"))}


def _read(builder: Builder, split: str, file: Path) -> None:
    xml = XmlFile(file)
    if xml.root.tag != "annotation":
        raise UserError(f"{file}: expected <annotation>, got <{xml.root.tag}>")
    size = None
    if (element := xml.root.find("size")) is not None:
        size = int(xml.number(element, "width")), int(xml.number(element, "height"))
    image = builder.add_image(split, _image_file(builder.root, xml), size)
    masks = _masks(builder.root, file.stem, (image.width, image.height))
    for number, one in enumerate(xml.root.findall("object"), 1):
        try:
            name, instance = _parsed(xml, one)
        except UserError as error:
            builder.findings.wrong(str(error))
            continue
        if masks is not None and (masks == number).any():
            instance["rle"] = encoded(masks == number)
        image.add(name, **instance)


def _parsed(xml: XmlFile, one: Element) -> tuple[str, dict[str, Any]]:
    """The name of an object's class, and its box and polygons in pixels counted from 0."""
    name = (one.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{xml.place(one)}: an object without a name")
    box = one.find("bndbox")
    if box is None:
        raise UserError(f"{xml.place(one)}: an object without a box, 'bndbox'")
    corners = ("xmin", "ymin", "xmax", "ymax")
    left, top, right, bottom = (xml.number(box, key) for key in corners)
    first = 0 if any("." in (box.findtext(key) or "") for key in corners) else 1
    instance: dict[str, Any] = {"box": (max(left - first, 0), max(top - first, 0), right, bottom)}
    polygons = []
    for element in one.findall("polygon"):
        points = len(element) // 2
        names = (f"{axis}{point}" for point in range(1, points + 1) for axis in "xy")
        polygons.append([xml.number(element, key) - first for key in names])
    return name, instance | {"polygons": polygons}


def _image_file(root: Path, xml: XmlFile) -> Path:
    """The image of an XML file: of the name in it, or else of its own name."""
    folders = [root / folder for folder in _IMAGE_FOLDERS]
    if xml.path.parent.name != "Annotations":
        folders = [xml.path.parent]
    name = (xml.root.findtext("filename") or "").strip()
    names = [name] if name else []
    names += [xml.path.stem + suffix for suffix in IMAGE_SUFFIXES]
    for folder in folders:
        for one in names:
            if (path := within(root, folder / one)).is_file():
                return path
    raise UserError(f"{xml.path}: there is no image {name or xml.path.stem} in {folders[0]}")


def _masks(root: Path, stem: str, size: tuple[int, int]) -> np.ndarray | None:
    """The numbers of objects (H, W) by pixel, if there is such an image."""
    path = root / "SegmentationObject" / f"{stem}.png"
    if not path.is_file():
        return None
    with naming_unreadable_image(str(path)), Image.open(path) as image:
        if image.size != size or image.mode not in ("P", "L"):
            raise UserError(
                f"{path} must have a palette and {size[0]}×{size[1]} pixels, got "
                f"{image.mode} and {image.size[0]}×{image.size[1]}"
            )
        return np.asarray(image)
