"""What a data set holds: how many instances of each class and size."""

from collections import Counter
from dataclasses import dataclass

from .coco_format import CocoSummary

# COCO's own limits, pixels of area.
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}


@dataclass(frozen=True)
class Statistics:
    """The numbers of a data set.

    Attributes:
        images: number of images.
        empty: those without an instance, by the names of their files.
        instances: number of instances, by class and by the names of :data:`SIZES`.
        crowds: number of crowds, by class.
    """

    images: int
    empty: list[str]
    instances: dict[str, Counter[str]]
    crowds: Counter[str]


def statistics(summary: CocoSummary) -> Statistics:
    """Counts the images and instances of a data set, after what was wrong is left out."""
    names = summary.categories
    instances: dict[str, Counter[str]] = {name: Counter() for name in names.values()}
    crowds: Counter[str] = Counter()
    seen = set()
    for one in summary.content["annotations"]:
        name = names[one["category_id"]]
        if one["iscrowd"]:
            crowds[name] += 1
            continue
        seen.add(one["image_id"])
        instances[name][_size(one["area"])] += 1
    images = summary.content["images"]
    empty = [image["file_name"] for image in images if image["id"] not in seen]
    return Statistics(len(images), empty, instances, crowds)


def _size(area: float) -> str:
    return next(name for name, (least, most) in SIZES.items() if least <= area < most)
