"""The sections of a report on a detector."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..predict.images import read_rgb
from ..visualize.classification import draw_confusion_matrix
from ..visualize.instances import draw_instances
from . import figures
from .evaluation import TASKS, ClassResult, Evaluated, ImagePairs, Truth
from .mistakes import KINDS, Judged, confusion
from .page import Pair, Part, Section
from .statistics import DataStatistics

IMAGE_SIDE = 640  # pixels of a picture's longer side
_MEASURES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "small",
    "ap_medium": "medium",
    "ap_large": "large",
    "ar": "AR",
}


def result(evaluated: dict[str, Evaluated]) -> Section:
    """AP and AR of boxes and masks, by size."""
    rows = [[TASKS[task], *_measures(one.mean())] for task, one in evaluated.items()]
    note = (
        "Percent, of the validation split, as COCO's summary: AP is the mean over IoU 0.50 to "
        "0.95; small, medium and large are AP of instances below 32², up to and above 96² pixels; "
        "AR is the recall of 100 detections."
    )
    return Section("Result", [Part(note=note, header=["", *_MEASURES.values()], rows=rows)])


def by_class(evaluated: dict[str, Evaluated]) -> Section:
    """The same for each class, best first."""
    parts = []
    for task, one in evaluated.items():
        classes = sorted(one.classes, key=lambda c: (math.isnan(c.ap), -c.ap))
        rows = [[c.name, f"{c.instances:,}", *_measures(c)] for c in classes]
        header = ["class", "instances", *_MEASURES.values()]
        parts.append(Part(heading=f"By {TASKS[task]}", header=header, rows=rows))
    return Section("Classes", parts)


def precision_recall(evaluated: dict[str, Evaluated]) -> Section:
    """Curves."""
    return Section(
        "Precision and recall",
        [
            Part(heading=f"By {TASKS[task]}", picture=figures.precision_recall(one))
            for task, one in evaluated.items()
        ],
    )


def mistakes(judged: Judged, task: str) -> Section:
    """What kinds of mistakes there are, and what they cost."""
    base = judged.ap50()
    rows = [
        [kind, meaning, f"{judged.count(kind):,}", f"{judged.ap50(kind) - base:.1f}"]
        for kind, meaning in KINDS.items()
    ]
    threshold, f1 = judged.best_threshold()
    note = (
        f"By {TASKS[task]}, at IoU 0.5, of the 100 surest detections of each image, whatever their "
        f"score; kinds and costs as TIDE defines them (Bolya et al., ECCV 2020). AP50 is "
        f"{base:.1f}. F1 is highest, {f1:.2f}, where detections below a score of {threshold:.2f} "
        f"are left out (predict --score-threshold)."
    )
    header = ["kind", "detections that are", "number", "AP50 gained without"]
    return Section(
        "Mistakes",
        [Part(note=note, picture=figures.mistakes(judged)), Part(header=header, rows=rows)],
    )


def confused(pairs: list[ImagePairs], truth: Truth, threshold: float) -> Section:
    """What each class is taken for."""
    counts = confusion(pairs, truth.categories, threshold)
    names = [*truth.names, "(nothing)"]
    right, found = int(np.trace(counts[:-1, :-1])), int(counts[:, :-1].sum())
    there = int(counts[:-1].sum())
    title = f"{right:,} of {there:,} instances are right"
    picture = figures.as_svg(
        lambda file: draw_confusion_matrix(counts, names, file, title=title, of="row")
    )
    note = (
        f"Of the {found:,} detections that score above {threshold:g}. Rows: what is there. "
        f"Columns: what it is taken for; (nothing) is a column of what is missed, and a row of "
        f"detections where there is nothing. Matched at IoU 0.5, whatever the class."
    )
    return Section("Confusion", [Part(note=note, picture=picture)])


def best_and_worst(
    pairs: list[ImagePairs],
    judged: Judged,
    truth: Truth,
    folder: Path,
    threshold: float,
    number: int,
) -> Section:
    """The images with the highest and the lowest F1."""
    counts = judged.per_image(len(pairs), threshold)
    right, wrong, left = counts.T
    f1 = 2 * right / np.maximum(2 * right + wrong + left, 1)
    shown = np.flatnonzero(counts.sum(1) > 0)
    best = shown[np.lexsort((-right[shown], -f1[shown]))][:number]
    worst = shown[np.lexsort((-(wrong + left)[shown], f1[shown]))][:number]
    parts = []
    for heading, chosen in (("Best", best), ("Worst", worst)):
        drawn = []
        for index in chosen.tolist():
            caption = "{} right, {} wrong, {} missed".format(*counts[index])
            drawn.append(_pair(pairs[index], truth, folder, threshold, caption))
        parts.append(Part(heading=heading, pairs=[pair for pair in drawn if pair]))
    parts[0] = Part(
        parts[0].heading,
        f"By F1 of the detections that score above {threshold:g}: these on the left, the truth on "
        f"the right.",
        pairs=parts[0].pairs,
    )
    return Section("Best and worst images", parts if parts[0].pairs or parts[1].pairs else [])


def data(splits: list[DataStatistics]) -> Section:
    """What the data hold."""
    header = ["", "images", "without instances", "instances", "crowds", "small", "medium", "large"]
    header += ["in an image", "image sizes"]
    rows = []
    for one in splits:
        shares = [f"{share:.0%}" for share in one.shares.values()]
        low, middle, high = one.sizes or [(0, 0)] * 3
        each = f"{np.median(one.per_image):g} (to {one.per_image.max()})" if one.images else "–"
        sizes = " … ".join(dict.fromkeys(f"{w}×{h}" for w, h in (low, middle, high)))
        counts = [
            f"{one.images:,}",
            f"{one.empty:,}",
            f"{one.instances.sum():,}",
            f"{one.crowds:,}",
        ]
        rows.append([one.name, *counts, *shares, each, sizes])
    names = list(dict.fromkeys(name for one in splits for name in one.names))
    counted = [dict(zip(one.names, one.instances.tolist(), strict=True)) for one in splits]
    classes = [[name, *(f"{count.get(name, 0):,}" for count in counted)] for name in names]
    classes.sort(key=lambda row: -sum(count.get(row[0], 0) for count in counted))
    return Section(
        "Data",
        [
            Part(
                note="Crowds are not counted as instances; in an image: the median and the most.",
                header=header,
                rows=rows,
            ),
            Part(picture=figures.sizes(splits)),
            Part("Instances of each class", header=["", *(s.name for s in splits)], rows=classes),
        ],
    )


def _pair(
    pair: ImagePairs, truth: Truth, folder: Path, threshold: float, caption: str
) -> Pair | None:
    """Draws an image; None if it cannot be read."""
    name = pair.image["file_name"]
    try:
        image = read_rgb(folder / name)
    except UserError:
        return None
    scale = IMAGE_SIDE / max(image.shape[:2])
    sure = [one for one in pair.detections if one["score"] > threshold]
    found, real = (
        figures.as_jpeg(draw_instances(image, _annotations(some, truth), truth.names, scale=scale))
        for some in (sure, pair.truth)
    )
    return Pair(found, real, name, caption)


def _annotations(some: list[dict[str, Any]], truth: Truth) -> list[dict[str, Any]]:
    """Converts records of COCO's json to Detectron2's dataset format, as far as is drawn."""
    from detectron2.structures import BoxMode

    kept = ("bbox", "segmentation", "score", "iscrowd")
    numbers = {category: number for number, category in enumerate(truth.categories)}
    return [
        {
            **{key: one[key] for key in kept if one.get(key)},
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": numbers[one["category_id"]],
        }
        for one in some
    ]


def _measures(one: ClassResult) -> list[str]:
    values = [getattr(one, name) for name in _MEASURES]
    return ["–" if math.isnan(value) else f"{value:.1f}" for value in values]
