"""Checks of data sets in COCO's format, made before training starts."""

import os.path
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError
from .annotations import has_mask, repaired
from .coco_records import check_text, id_key, load_coco, sound_records
from .findings import Findings
from .mapper import naming_unreadable_image

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # Exif orientations that swap width and height


@dataclass
class CocoSummary:
    """What a COCO json file holds.

    Attributes:
        json_file: the file.
        content: what is to be used: the file's content without what is wrong or odd.
        changed: whether that differs from the file's.
        findings: what was wrong or odd.
    """

    json_file: str
    content: dict[str, Any] = field(repr=False)
    changed: bool
    findings: Findings = field(repr=False)

    def __str__(self) -> str:
        masks = "masks" if self.has_masks else "boxes alone"
        return (
            f"{self.json_file}: {len(self.content['images'])} images, {len(self.instances)} "
            f"instances ({masks}) of {len(self.categories)} categories"
        )

    @property
    def categories(self) -> dict[int, str]:
        """Names of the categories by id."""
        return {category["id"]: category["name"] for category in self.content["categories"]}

    @property
    def instances(self) -> list[dict[str, Any]]:
        """The annotations other than crowds."""
        return [one for one in self.content["annotations"] if not one["iscrowd"]]

    @property
    def has_masks(self) -> bool:
        """Whether every instance has a segmentation."""
        return all(one.get("segmentation") for one in self.instances)

    @property
    def has_rle(self) -> bool:
        """Whether the segmentation of any instance is run-length encoded."""
        return any(isinstance(one.get("segmentation"), dict) for one in self.instances)

    @property
    def repaired(self) -> dict[str, Any] | None:
        """The content to use, or None if it is the file's."""
        return self.content if self.changed else None

    @property
    def odd(self) -> list[str]:
        """What was put right or left out, a line for each kind."""
        return self.findings.lines


def check_coco_data(
    json_file: str, image_folder: str, odd: str = "repair", *, masks: bool = True
) -> CocoSummary:
    """Checks a COCO json file and the headers of all of its images.

    Args:
        json_file, image_folder: the data.
        odd: what is done with annotations that are merely odd (:mod:`.annotations`); see
            :class:`.findings.Findings`.
        masks: whether masks are used. Instances without one are odd then, if others have one.

    Raises:
        UserError: a file is missing, the json file is not in COCO's format, an image cannot be
            read, or the size of an image differs from its size in the json file.
    """
    found = examine_coco_data(json_file, image_folder, odd, masks=masks)
    found.findings.check()
    return found


def examine_coco_data(
    json_file: str, image_folder: str, odd: str = "repair", *, masks: bool = True
) -> CocoSummary:
    """Does what :func:`check_coco_data` does, but collects all faults.

    Raises:
        UserError: there is no such file or folder, or the json file is none of COCO's format.
    """
    findings = Findings(json_file, odd)
    content = load_coco(json_file)
    if not Path(image_folder).is_dir():
        raise UserError(f"there is no image folder {image_folder}, which {json_file} goes with")
    if not content["images"] or not content["categories"]:
        raise UserError(f"{json_file} has no images or no categories: nothing to train on")
    with_masks = masks and any(map(has_mask, content["annotations"]))

    def check_category(category: dict[str, Any], name: str) -> dict[str, Any]:
        check_text(name, "name", category["name"])
        return category

    def check_image(image: dict[str, Any], name: str) -> dict[str, Any]:
        _check_image(image, name, json_file, image_folder)
        return image

    categories, category_ids = sound_records(
        content, "categories", ("name",), findings, check_category
    )
    images, image_ids = sound_records(
        content, "images", ("file_name", "width", "height"), findings, check_image
    )
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}

    def check_annotation(annotation: dict[str, Any], name: str) -> dict[str, Any] | None:
        new: dict[str, Any] = {}
        for key, known in (("image_id", image_ids), ("category_id", category_ids)):
            own = id_key(annotation[key])
            if own is None or own not in known:
                of = key.removesuffix("_id")
                raise UserError(f"{name} is of {of} {annotation[key]!r}, which is not listed")
            new[key] = known[own]
        if None in new.values():
            return None  # The image or the category is wrong, and said to be.
        if annotation.get("ignore"):
            raise UserError(f"{name} has 'ignore', which Detectron2 does not know: use 'iscrowd'")
        try:
            right, kind = repaired(annotation, *sizes[new["image_id"]], masks=with_masks)
        except UserError as error:
            raise UserError(f"{name} {error}") from error
        own_name = name.removeprefix("annotation ")
        if kind and findings.odd("annotations", kind, "put right", own_name) == "left out":
            return None
        if any(
            type(annotation[key]) is not type(new[key]) or annotation[key] != new[key]
            for key in new
        ):
            right = {**right, **new}
        return right

    annotations, _ = sound_records(
        content,
        "annotations",
        ("image_id", "category_id", "bbox"),
        findings,
        check_annotation,
    )
    lists = {"images": images, "categories": categories, "annotations": annotations}
    changed = any(
        len(lists[key]) != len(content[key])
        or any(new is not old for new, old in zip(lists[key], content[key], strict=True))
        for key in lists
    )
    found = CocoSummary(json_file, {**content, **lists}, changed, findings)
    if not found.instances and not findings.faults:
        findings.faults.append(
            f"{json_file} has no annotation of an instance: nothing to learn or test"
        )
    return found


def _check_image(image: dict[str, Any], name: str, json_file: str, image_folder: str) -> None:
    """Checks the record of an image, and the file's header."""
    check_text(name, "file_name", image["file_name"])
    for side in ("width", "height"):
        if type(image[side]) is not int or image[side] < 1:
            raise UserError(f"{name} has no {side} in pixels but {image[side]!r}")
    path = os.path.join(image_folder, image["file_name"])
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(image_folder)):
        raise UserError(
            f"{name} is {image['file_name']!r}, which leads out of {image_folder}: give a folder "
            f"that holds all images"
        )
    size = image_size(Path(path))
    if size != (image["width"], image["height"]):
        raise UserError(
            f"{name}, {path}, is {size[0]}×{size[1]}, but the json says "
            f"{image['width']}×{image['height']}"
        )


def image_size(path: Path) -> tuple[int, int]:
    """Reads (width, height) in pixels after the rotation that Exif asks for, as Detectron2 does.

    Raises:
        UnreadableImage: there is no such file, or it is no image.
    """
    with naming_unreadable_image(str(path)), Image.open(path) as image:
        sideways = image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS
        return image.size[::-1] if sideways else image.size
