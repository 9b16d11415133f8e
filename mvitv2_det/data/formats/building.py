"""What all readers of formats build: COCO's content, split by split."""

import os.path
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ...errors import UserError
from ..coco_format import image_size
from ..findings import Findings
from .files import within


@dataclass
class Split:
    """A split of a data set.

    Attributes:
        content: as a COCO json file has it.
        images: the folder that the names of image files start from.
        json_file: where the content stands already, if it does.
    """

    content: dict[str, Any]
    images: Path
    json_file: Path | None = None


class Builder:
    """Collects images and instances, by split.

    Args:
        root: the folder that all files are in.
        findings: what is wrong or left out is noted here.
        categories: names by id, if they are known; others are numbered as their names are sorted.
    """

    def __init__(
        self, root: Path, findings: Findings, categories: Mapping[int, str] | None = None
    ) -> None:
        self.root = root
        self.findings = findings
        self.categories = dict(categories or {})
        self._images: dict[str, list[dict[str, Any]]] = {}
        self._annotations: dict[str, list[dict[str, Any]]] = {}
        self._groups: dict[tuple[str, int, str, object], dict[str, Any]] = {}

    def add_image(self, split: str, path: Path, size: tuple[int, int] | None = None) -> "_Image":
        """Adds an image.

        Args:
            split: the name of its split.
            path: of its file, within the root.
            size: its width and height according to the labels, if these say so.

        Raises:
            UserError: it cannot be read, or has another size.
        """
        path = within(self.root, path)
        found = image_size(path)
        if size is not None and all(size) and size != found:
            raise UserError(
                f"{path} is {found[0]}×{found[1]}, but its labels say {size[0]}×{size[1]}"
            )
        images = self._images.setdefault(split, [])
        self._annotations.setdefault(split, [])
        images.append(
            {
                "id": len(images) + 1,
                "file_name": path.relative_to(os.path.abspath(self.root)).as_posix(),
                "width": found[0],
                "height": found[1],
            }
        )
        return _Image(self, split, len(images), *found)

    def add_instance(
        self,
        image: "_Image",
        category: int | str,
        *,
        box: Iterable[float] | None = None,
        polygons: Iterable[list[float]] = (),
        rle: dict[str, Any] | None = None,
        crowd: bool = False,
        group: object = None,
    ) -> None:
        """Adds an instance.

        Args:
            image: the image that it is on.
            category: its id, if they are known, or else its name.
            box: left, top, right and bottom in pixels; by default those of the polygons.
            polygons: of its mask, [x1, y1, x2, y2, …] in pixels each.
            rle: its mask, run-length encoded, instead of polygons.
            crowd: whether it is a group of instances.
            group: polygons of the same category with the same group, other than None, are those
                of one instance, and a box among them is its own.
        """
        lines = [list(polygon) for polygon in polygons]
        key = (image.split, image.number, str(category), group)
        known = self._groups.get(key) if group is not None else None
        if known and (lines or "segmentation" in known):
            if lines:
                known["segmentation"] = known.get("segmentation", []) + lines
                known["bbox"] = _box_of(known["segmentation"])
            return
        annotations = self._annotations[image.split]
        one: dict[str, Any] = {
            "id": len(annotations) + 1,
            "image_id": image.number,
            "category_id": category,
            "bbox": _box_of(lines),
            "iscrowd": int(crowd),
        }
        if box is not None:
            left, top, right, bottom = map(float, box)
            one["bbox"] = [left, top, right - left, bottom - top]
        if rle is not None or lines:
            one["segmentation"] = rle if rle is not None else lines
        annotations.append(one)
        if group is not None and rle is None:
            self._groups[key] = one

    def splits(self) -> dict[str, Split]:
        """The content of each split; all have the same categories."""
        names = {
            one["category_id"]
            for annotations in self._annotations.values()
            for one in annotations
            if isinstance(one["category_id"], str)
        }
        known = set(self.categories.values())
        first = max(self.categories, default=0) + 1
        self.categories |= dict(enumerate(sorted(names - known), first))
        ids = {name: category for category, name in self.categories.items()}
        for annotations in self._annotations.values():
            for one in annotations:
                one["category_id"] = ids.get(one["category_id"], one["category_id"])
        categories = [{"id": one, "name": name} for one, name in self.categories.items()]
        return {
            split: Split(
                {
                    "images": images,
                    "annotations": self._annotations[split],
                    "categories": categories,
                },
                self.root,
            )
            for split, images in self._images.items()
        }


@dataclass(frozen=True)
class _Image:
    """An image that was added.

    Attributes:
        builder: whose it is.
        split, number: its split, and its id there.
        width, height: in pixels.
    """

    builder: Builder = field(repr=False)
    split: str
    number: int
    width: int
    height: int

    def add(self, category: int | str, **instance: Any) -> None:
        """Adds an instance on it; see :meth:`Builder.add_instance`."""
        self.builder.add_instance(self, category, **instance)


def _box_of(polygons: list[list[float]]) -> list[float]:
    """The box [left, top, width, height] of polygons; without any, one of no size."""
    xs = [x for polygon in polygons for x in polygon[::2]] or [0.0]
    ys = [y for polygon in polygons for y in polygon[1::2]] or [0.0]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def encoded(mask: np.ndarray) -> dict[str, Any]:
    """Encodes a mask (H, W) of truth values by its runs, as COCO's format has them."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
