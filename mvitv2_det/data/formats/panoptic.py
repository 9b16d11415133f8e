"""COCO's panoptic format: a json file, and an image whose colours number the segments.

Segments of things are instances; those of stuff, which cannot be counted, are left out.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from ..coco_records import check_text, id_key, load_coco
from ..findings import Findings
from ..mapper import naming_unreadable_image
from .building import Builder, Split, encoded
from .coco import image_folder, json_files
from .files import kind_of_json, within


def find(path: Path) -> Path | None:
    """Finds a json file, or a folder with such files, of the panoptic format."""
    files = list(_files(path).values())
    return path if files and kind_of_json(files[0]) == "panoptic" else None


def read(path: Path, findings: Findings) -> dict[str, Split]:
    """Reads a data set.

    Args:
        path: what :func:`find` found.
        findings: what is wrong or left out is noted here.

    Raises:
        UserError: a file is not in COCO's format, or the folder of its images is not found.
    """
    splits: dict[str, Split] = {}
    for split, file in _files(path).items():
        content = load_coco(str(file))
        builder = Builder(
            image_folder(file, content, path if path.is_dir() else None),
            findings,
            _things(file, content["categories"]),
        )
        masks = _mask_folder(file, content)
        images = {id_key(one.get("id")): one for one in content["images"] if isinstance(one, dict)}
        for number, annotation in enumerate(content["annotations"]):
            try:
                _read(builder, split, annotation, images, masks)
            except UserError as error:
                findings.wrong(f"{file}: annotations[{number}]: {error}")
        splits |= builder.splits()
    return splits


def _files(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {"": path} if path.suffix == ".json" else {}
    files = {split: file for split, file in json_files(path).items() if "panoptic" in file.name}
    return files or json_files(path)


def _things(file: Path, categories: list[Any]) -> dict[int, str]:
    """The names of the categories that can be counted, by id."""
    names: dict[int, str] = {}
    for one in categories:
        if not (isinstance(one, dict) and type(one.get("id")) is int):
            raise UserError(f"{file}: a category without a whole number as its 'id'")
        check_text(f"{file}: category {one['id']}", "name", one.get("name"))
        if one.get("isthing", 1):
            names[one["id"]] = one["name"]
    return names


def _mask_folder(file: Path, content: dict[str, Any]) -> Path:
    """The folder with the images of segments: that of the json's name, beside it."""
    names = [one.get("file_name") for one in content["annotations"] if isinstance(one, dict)]
    name = next((name for name in names if isinstance(name, str) and name), None)
    for folder in (file.with_suffix(""), file.parent / "masks", file.parent):
        if name is not None and within(folder, name).is_file():
            return folder
    raise UserError(f"{file} needs the images of its segments in {file.with_suffix('')}")


def _read(
    builder: Builder,
    split: str,
    annotation: Any,
    images: dict[str | None, dict[str, Any]],
    masks: Path,
) -> None:
    if not isinstance(annotation, dict):
        raise UserError(f"is a {type(annotation).__name__}")
    key, segments = id_key(annotation.get("image_id")), annotation.get("segments_info")
    record = images.get(key) if key else None
    if record is None:
        raise UserError(f"of image {annotation.get('image_id')!r}, which is not listed")
    for one, field in ((record, "file_name"), (annotation, "file_name")):
        check_text("the record", field, one.get(field))
    if not isinstance(segments, list):
        raise UserError("has no list 'segments_info'")
    image = builder.add_image(split, builder.root / record["file_name"])
    numbers = _segment_numbers(within(masks, annotation["file_name"]))
    if numbers.shape != (image.height, image.width):
        raise UserError(
            f"{annotation['file_name']} is {numbers.shape[1]}×{numbers.shape[0]}, but its image "
            f"{image.width}×{image.height}"
        )
    for segment in segments:
        if not (isinstance(segment, dict) and type(segment.get("id")) is int):
            raise UserError("a segment without an id")
        name = f"{segment['id']} of {annotation['file_name']}"
        category = segment.get("category_id")
        if type(category) is not int or category not in builder.categories:
            builder.findings.note("segments", "no category of things", "left out", name)
            continue
        mask = numbers == segment["id"]
        if not mask.any():
            builder.findings.odd("segments", "no pixel", "left out", name)
            continue
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        image.add(
            category,
            box=(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1),
            rle=encoded(mask),
            crowd=bool(segment.get("iscrowd")),
        )


def _segment_numbers(path: Path) -> np.ndarray:
    """The number of the segment of each pixel (H, W): red + 256 green + 65536 blue."""
    with naming_unreadable_image(str(path)), Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.int64)
    return pixels @ np.array([1, 256, 65536])
