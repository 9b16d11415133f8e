"""Checks of data sets in COCO's format, made before training starts."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError
from .mapper import naming_unreadable_image

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # Exif orientations that swap width and height


@dataclass(frozen=True)
class CocoSummary:
    """The facts about a COCO json file that training needs.

    Attributes:
        categories: names of the categories by id.
        has_masks: whether every instance other than crowds has a segmentation.
        has_rle: whether any of these segmentations is run-length encoded.
    """

    categories: dict[int, str]
    has_masks: bool
    has_rle: bool


def check_coco_data(json_file: str, image_folder: str) -> CocoSummary:
    """Checks a COCO json file and the headers of all of its images.

    Raises:
        UserError: a file is missing, the json file is not in COCO's format, an image cannot be
            read, or the size of an image differs from its size in the json file.
    """
    content = _load(json_file)
    images = _records(json_file, content, "images", ("id", "file_name", "width", "height"))
    categories = _records(json_file, content, "categories", ("id", "name"))
    annotations = _records(
        json_file,
        content,
        "annotations",
        ("id", "image_id", "category_id", "bbox", "area", "iscrowd"),
    )
    if not images or not categories:
        raise UserError(f"{json_file} has no images or no categories: nothing to train on")
    names = {category["id"]: category["name"] for category in categories}
    image_ids = {image["id"] for image in images}
    for annotation in annotations:
        _check_annotation(json_file, annotation, image_ids, names)
    _check_images(json_file, image_folder, images)
    masks = [a.get("segmentation") for a in annotations if not a["iscrowd"]]
    return CocoSummary(
        categories=names,
        has_masks=all(masks),
        has_rle=any(isinstance(mask, dict) for mask in masks),
    )


def check_same_categories(
    train_json: str, train: CocoSummary, val_json: str, val: CocoSummary
) -> None:
    """Checks that both splits list the same categories with the same ids.

    Raises:
        UserError: one split does not list a category of the other; the message names it.
    """
    pairs = ((train_json, train, val_json, val), (val_json, val, train_json, train))
    for known_json, known, other_json, other in pairs:
        for category, name in known.categories.items():
            if other.categories.get(category) != name:
                raise UserError(
                    f"category {name!r} (id {category}) of {known_json} is unknown to "
                    f"{other_json}: both must list the same categories with the same ids"
                )


def _load(json_file: str) -> dict[str, Any]:
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise UserError(f"cannot read {json_file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{json_file} is no json: {error}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{json_file} is not in COCO's format: expected an object with 'images', "
            f"'annotations' and 'categories', got a {type(content).__name__}"
        )
    return content


def _records(
    json_file: str, content: dict[str, Any], key: str, fields: Iterable[str]
) -> list[dict[str, Any]]:
    """Returns a list of a COCO json file, after a check that its records are complete.

    Each record must have the given fields, and an ``id`` that no other record of the list has.
    """
    records = content.get(key)
    if not isinstance(records, list):
        raise UserError(f"{json_file} is not in COCO's format: it has no list {key!r}")
    seen = set()
    for number, record in enumerate(records):
        for field in fields:
            if not isinstance(record, dict) or field not in record:
                raise UserError(
                    f"{json_file} is not in COCO's format: {key}[{number}] has no {field!r}"
                )
        if record["id"] in seen:
            raise UserError(f"{json_file}: the id {record['id']} stands twice in {key!r}")
        seen.add(record["id"])
    return records


def _check_annotation(
    json_file: str, annotation: dict[str, Any], image_ids: set[Any], names: dict[int, str]
) -> None:
    culprit = f"{json_file}: annotation {annotation['id']}"
    if annotation["image_id"] not in image_ids:
        raise UserError(f"{culprit} is of image {annotation['image_id']}, which is not listed")
    if annotation["category_id"] not in names:
        raise UserError(
            f"{culprit} is of category {annotation['category_id']}, which is not listed"
        )
    box = annotation["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(_is_number(side) for side in box)):
        raise UserError(f"{culprit} has no box [x, y, width, height] but {box!r}")
    if annotation.get("ignore"):
        raise UserError(f"{culprit} has 'ignore', which Detectron2 does not know: use 'iscrowd'")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_images(json_file: str, image_folder: str, images: list[dict[str, Any]]) -> None:
    folder = Path(image_folder)
    if not folder.is_dir():
        raise UserError(f"there is no image folder {image_folder}, which {json_file} goes with")
    for image in images:
        path = folder / image["file_name"]
        size = _image_size(path)
        if size != (image["width"], image["height"]):
            raise UserError(
                f"image {path} is {size[0]}×{size[1]}, but {json_file} says "
                f"{image['width']}×{image['height']}"
            )


def _image_size(path: Path) -> tuple[int, int]:
    """Reads (width, height) in pixels after the rotation that Exif asks for, as Detectron2 does."""
    with naming_unreadable_image(str(path)), Image.open(path) as image:
        sideways = image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS
        return image.size[::-1] if sideways else image.size
