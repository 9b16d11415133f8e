"""Checks of data sets in COCO's format, made before training starts."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError
from .annotations import Odd, repaired
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
        repaired: the content of the file without what is odd; None if nothing is.
        odd: what that was, as a line for each kind.
    """

    categories: dict[int, str]
    has_masks: bool
    has_rle: bool
    repaired: dict[str, Any] | None = None
    odd: tuple[str, ...] = ()


ODD = ("repair", "drop", "refuse")


def check_coco_data(json_file: str, image_folder: str, odd: str = "repair") -> CocoSummary:
    """Checks a COCO json file and the headers of all of its images.

    Args:
        json_file, image_folder: the data.
        odd: what is done with annotations that are merely odd (:mod:`.annotations`): ``repair``
            puts them right, ``drop`` leaves them out, ``refuse`` is an error.

    Raises:
        UserError: a file is missing, the json file is not in COCO's format, an image cannot be
            read, or the size of an image differs from its size in the json file.
    """
    if odd not in ODD:
        raise UserError(f"dataset.odd_annotations must be {', '.join(ODD)}, got {odd!r}")
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
    for category in categories:
        _check_text(f"{json_file}: category {category['id']!r}", "name", category["name"])
    names = {category["id"]: category["name"] for category in categories}
    for image in images:
        _check_image(json_file, image)
    by_id = {image["id"]: image for image in images}
    kept, changed, kinds = _check_annotations(json_file, annotations, by_id, names, odd)
    if not any(not annotation["iscrowd"] for annotation in kept):
        raise UserError(f"{json_file} has no annotation of an instance: nothing to learn or test")
    _check_images(json_file, image_folder, images)
    masks = [a.get("segmentation") for a in kept if not a["iscrowd"]]
    return CocoSummary(
        categories=names,
        has_masks=all(masks),
        has_rle=any(isinstance(mask, dict) for mask in masks),
        repaired={**content, "annotations": kept} if changed else None,
        odd=tuple(
            f"{json_file}: {len(ids)} annotations have {kind} (the first is {ids[0]}): {done}"
            for (kind, done), ids in kinds.items()
        ),
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
    except (ValueError, RecursionError) as error:
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
    # Images may be named by texts; the others are compared and sorted as numbers.
    kinds: tuple[type, ...] = (int, str) if key == "images" else (int,)
    if not isinstance(records, list):
        raise UserError(f"{json_file} is not in COCO's format: it has no list {key!r}")
    seen = set()
    for number, record in enumerate(records):
        for field in fields:
            if not isinstance(record, dict) or field not in record:
                raise UserError(
                    f"{json_file} is not in COCO's format: {key}[{number}] has no {field!r}"
                )
        name = record["id"]
        if type(name) not in kinds or type(name) is not type(records[0]["id"]):
            expected = " or all texts" if str in kinds else ""
            raise UserError(
                f"{json_file}: the id {name!r} of {key}[{number}] is a {type(name).__name__}: ids "
                f"must be whole numbers{expected}"
            )
        if not -(2**53) < (name if isinstance(name, int) else 0) < 2**53:
            raise UserError(f"{json_file}: the id {name} of {key}[{number}] is too large")
        if name in seen:
            raise UserError(f"{json_file}: the id {name!r} stands twice in {key!r}")
        seen.add(name)
    return records


def _check_annotations(
    json_file: str,
    annotations: list[dict[str, Any]],
    images: dict[Any, dict[str, Any]],
    names: dict[int, str],
    odd: str,
) -> tuple[list[dict[str, Any]], bool, dict[tuple[str, str], list[Any]]]:
    """Checks all annotations.

    Returns:
        those to use; whether they differ from those given; and ids by what is odd about them and
        what was done.
    """
    kept: list[dict[str, Any]] = []
    kinds: dict[tuple[str, str], list[Any]] = {}
    has_masks = all(a.get("segmentation") for a in annotations if not a["iscrowd"])
    for annotation in annotations:
        culprit = f"{json_file}: annotation {annotation['id']}"
        for field, known in (("image_id", images), ("category_id", names)):
            of = field.removesuffix("_id")
            value = annotation[field]
            # 1 and 1.0 and true are equal, and one of another type is found nowhere later.
            is_known = isinstance(value, int | str) and not isinstance(value, bool)
            if not is_known or value not in known:
                raise UserError(f"{culprit} is of {of} {value!r}, which is not listed")
        if annotation.get("ignore"):
            raise UserError(
                f"{culprit} has 'ignore', which Detectron2 does not know: use 'iscrowd'"
            )
        image = images[annotation["image_id"]]
        try:
            right, found = repaired(
                annotation, image["width"], image["height"], has_masks=has_masks
            )
            kind, done = found, "put right"
        except Odd as error:
            right, kind, done = {}, str(error), "left out"
        except UserError as error:
            raise UserError(f"{culprit} {error}") from error
        if kind and odd == "refuse":
            raise UserError(f"{culprit} has {kind}; dataset.odd_annotations=repair puts it right")
        if kind and odd == "drop":
            right, done = {}, "left out"
        if kind:
            kinds.setdefault((kind, done), []).append(annotation["id"])
        if right:
            kept.append(right)
    return kept, bool(kinds), kinds


def _check_image(json_file: str, image: dict[str, Any]) -> None:
    culprit = f"{json_file}: image {image['id']!r}"
    _check_text(culprit, "file_name", image["file_name"])
    for side in ("width", "height"):
        if type(image[side]) is not int or image[side] < 1:
            raise UserError(f"{culprit} has no {side} in pixels but {image[side]!r}")


def _check_text(culprit: str, field: str, value: object) -> None:
    """Checks a name: files and logs have no NUL and no halves of letters."""
    if not isinstance(value, str) or not value:
        raise UserError(f"{culprit} has a {field!r} that is no text but {value!r}")
    if "\0" in value or any(0xD800 <= ord(letter) < 0xE000 for letter in value):
        raise UserError(f"{culprit} has letters in its {field!r} that no file has: {value!a}")


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
