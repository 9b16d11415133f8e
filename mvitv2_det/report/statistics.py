"""What a data set holds: how many instances of each class, how large, how many in an image.

It is read from the json alone.
"""

from dataclasses import dataclass

import numpy as np

from .evaluation import Truth

SMALL, LARGE = 32.0, 96.0  # sides of a square instance: COCO's limits of small and large


@dataclass(frozen=True)
class DataStatistics:
    """What a split of the data holds.

    Attributes:
        name: of the split.
        images, empty, crowds: how many images, those without instances, and crowds.
        names: of the classes.
        instances: (K,) of each class, without crowds, as are all below.
        sides: (N,) square root of each instance's area, in pixels.
        per_image: (images,) instances.
        sizes: smallest, median and largest (width, height) of images, by their area.
    """

    name: str
    images: int
    empty: int
    crowds: int
    names: list[str]
    instances: np.ndarray
    sides: np.ndarray
    per_image: np.ndarray
    sizes: list[tuple[int, int]]

    @property
    def shares(self) -> dict[str, float]:
        """Share of small, medium and large instances."""
        total = max(len(self.sides), 1)
        small, large = (self.sides < SMALL).sum() / total, (self.sides > LARGE).sum() / total
        medium = 1 - small - large if len(self.sides) else 0.0
        return {"small": float(small), "medium": float(medium), "large": float(large)}


def data_statistics(truth: Truth, name: str) -> DataStatistics:
    """Counts what a split holds."""
    annotations = list(truth.coco.anns.values())
    real = [one for one in annotations if not one.get("iscrowd")]
    numbers = {category: number for number, category in enumerate(truth.categories)}
    images = list(truth.coco.imgs.values())
    places = {image["id"]: place for place, image in enumerate(images)}
    counts = np.bincount([places[one["image_id"]] for one in real], minlength=len(images))
    areas = [one.get("area") or one["bbox"][2] * one["bbox"][3] for one in real]
    sizes = sorted(((one["width"], one["height"]) for one in images), key=lambda s: s[0] * s[1])
    return DataStatistics(
        name,
        len(images),
        int((counts == 0).sum()),
        len(annotations) - len(real),
        truth.names,
        np.bincount([numbers[one["category_id"]] for one in real], minlength=len(numbers)),
        np.sqrt(np.array(areas, float)),
        counts,
        [sizes[0], sizes[len(sizes) // 2], sizes[-1]] if sizes else [],
    )
