"""A run's last predictions, measured against the truth by pycocotools.

Axes: as COCOeval's, T thresholds of IoU × R recalls × K classes × A sizes × M detections at most.
"""

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..errors import UserError

SIZES = ("all", "small", "medium", "large")
MOST_DETECTIONS = 100  # of an image, as COCOeval counts
TASKS = {"bbox": "box", "segm": "mask"}


@dataclass(frozen=True)
class ClassResult:
    """Average precision and recall of a class, in percent; not a number where there is no truth.

    Attributes:
        name: of the class.
        instances: of the truth, without crowds.
        ap, ap50, ap75, ap_small, ap_medium, ap_large, ar: as COCO's summary.
    """

    name: str
    instances: int
    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar: float


@dataclass(frozen=True)
class Evaluated:
    """One task, boxes or masks.

    Attributes:
        classes: in order of their ids.
        precision: (T, R, K) of all sizes and :data:`MOST_DETECTIONS`; -1 where there is no truth.
        ious: (T,).
        recalls: (R,).
    """

    classes: list[ClassResult]
    precision: np.ndarray
    ious: np.ndarray
    recalls: np.ndarray

    def mean(self) -> ClassResult:
        """The mean over classes that have truth, as COCO's summary."""
        names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")
        means = {name: _mean([getattr(one, name) for one in self.classes]) for name in names}
        return ClassResult("mean", sum(one.instances for one in self.classes), **means)


@dataclass(frozen=True)
class ImagePairs:
    """The detections of an image and its truth.

    Attributes:
        image: its record in the json.
        detections, truth: D and G annotations, detections by descending score.
        ious: (D, G); of a crowd, the share of the detection that lies in it.
    """

    image: dict[str, Any]
    detections: list[dict[str, Any]]
    truth: list[dict[str, Any]]
    ious: np.ndarray


class Truth:
    """What the json of a data set says.

    Attributes:
        coco: pycocotools' reading of it.
        categories: ids in ascending order.
        names: of the classes, in that order.
    """

    def __init__(self, json_file: str | Path) -> None:
        """
        Raises:
            UserError: it cannot be read.
        """
        try:
            with _silent():
                self.coco = COCO(str(json_file))
                self.categories = sorted(self.coco.getCatIds())
                loaded = self.coco.loadCats(self.categories)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot read the truth in {json_file}: {error!r}") from error
        self.names = [str(category["name"]) for category in loaded]

    def has_masks(self) -> bool:
        """Whether all instances have one."""
        return all(annotation.get("segmentation") for annotation in self.coco.anns.values())


def read_predictions(file: Path, truth: Truth) -> list[dict[str, Any]]:
    """Reads COCO's results format.

    Raises:
        UserError: it cannot be read, or is of other images or classes.
    """
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        images = {result["image_id"] for result in results} - set(truth.coco.imgs)
        categories = {result["category_id"] for result in results} - set(truth.categories)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read the predictions in {file}: {error!r}") from error
    if images or categories:
        what = f"image {min(images)}" if images else f"category {min(categories)}"
        raise UserError(
            f"{file} has predictions of {what}, which the validation data do not list: they were "
            f"made on other data"
        )
    return results


def evaluate_task(truth: Truth, results: list[dict[str, Any]], task: str) -> Evaluated:
    """Measures predictions as Detectron2's evaluator does.

    Args:
        truth: of the same images.
        results: of COCO's format.
        task: ``bbox`` or ``segm``.
    """
    if task == "segm":  # else the size of an instance would be its box's
        results = [{k: v for k, v in one.items() if k != "bbox"} for one in results]
    with _silent():
        found = truth.coco.loadRes([dict(one) for one in results]) if results else COCO()
        evaluation = COCOeval(truth.coco, found, task)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, :, -1]
    recall = evaluation.eval["recall"][:, :, 0, -1]
    classes = []
    for index, (category, name) in enumerate(zip(truth.categories, truth.names, strict=True)):
        own = truth.coco.loadAnns(truth.coco.getAnnIds(catIds=[category], iscrowd=False))
        by_size = [_percent(precision[:, :, index, size]) for size in range(len(SIZES))]
        classes.append(
            ClassResult(
                name,
                len(own),
                by_size[0],
                _percent(precision[0, :, index, 0]),
                _percent(precision[5, :, index, 0]),
                by_size[1],
                by_size[2],
                by_size[3],
                _percent(recall[:, index]),
            )
        )
    parameters = evaluation.params
    return Evaluated(classes, precision[:, :, :, 0], parameters.iouThrs, parameters.recThrs)


def pair_images(
    truth: Truth, results: list[dict[str, Any]], task: str, most: int = MOST_DETECTIONS
) -> Iterator[ImagePairs]:
    """Yields each image with its ``most`` surest detections, truth, and overlaps, by their ids."""
    by_image: dict[Any, list[dict[str, Any]]] = {image: [] for image in truth.coco.imgs}
    for result in results:
        by_image[result["image_id"]].append(result)
    for image_id in sorted(by_image):
        image = truth.coco.imgs[image_id]
        detections = sorted(by_image[image_id], key=lambda one: -one["score"])[:most]
        annotations = truth.coco.imgToAnns[image_id]
        if task == "segm":
            shapes = [one["segmentation"] for one in detections]
            real = [truth.coco.annToRLE(one) for one in annotations]
        else:
            shapes, real = ([one["bbox"] for one in some] for some in (detections, annotations))
        ious = np.zeros((len(detections), len(annotations)))
        if ious.size:
            crowds = [int(one.get("iscrowd", 0)) for one in annotations]
            ious = np.asarray(coco_mask.iou(shapes, real, crowds))
        yield ImagePairs(image, detections, annotations, ious)


def _percent(values: np.ndarray) -> float:
    known = values[values > -1]
    return float(100 * known.mean()) if known.size else float("nan")


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps pycocotools from printing."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
