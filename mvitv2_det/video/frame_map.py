"""Frame mAP: the mean average precision of boxes with actions at single frames (AVA).

It is the measure of ActivityNet's ``get_ava_performance.py``, PASCAL's at an IoU of 0.5: a
detection belongs to the box of its action in its frame that it overlaps most; it is right if the
overlap is enough and no better detection has taken that box. The average precision is the area
below the precision, made monotonic, over the recall. Detections of equal score are ranked in the
order in which they are given, where ActivityNet's order depends on NumPy's sorting.

Axes: N boxes, C actions.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou

IOU = 0.5


class Boxes(NamedTuple):
    """Boxes with an action each, of any number of frames.

    Attributes:
        frames: (N,) what names the frame of each, such as its number.
        boxes: (N, 4) left, top, right, bottom, in any unit.
        actions: (N,) number of the action of each.
        scores: (N,) of detections; not looked at in truths.
    """

    frames: np.ndarray
    boxes: np.ndarray
    actions: np.ndarray
    scores: np.ndarray


def average_precisions(
    truths: Boxes, detections: Boxes, actions: Collection[int], iou: float = IOU
) -> dict[int, float]:
    """The average precision of each action, in [0, 1]; NaN of one that no truth has.

    Args:
        truths, detections: boxes; those of other actions are left out. A detection in a frame
            without truths is wrong.
        actions: numbers of the actions to evaluate.
        iou: the least overlap.
    """
    found = {}
    for action in actions:
        wanted, given = (_select(boxes, boxes.actions == action) for boxes in (truths, detections))
        order = np.argsort(-given.scores, kind="stable")
        right = _matches(wanted, _select(given, order), iou)
        found[action] = _average_precision(right, len(wanted.boxes))
    return found


def mean_average_precision(precisions: Mapping[int, float]) -> float:
    """The mean of the actions that have truths; NaN if there are none."""
    values = [value for value in precisions.values() if not np.isnan(value)]
    return float(np.mean(values)) if values else float("nan")


def _select(boxes: Boxes, which: np.ndarray) -> Boxes:
    return Boxes(*(each[which] for each in boxes))


def _matches(truths: Boxes, detections: Boxes, iou: float) -> np.ndarray:
    """(N,) whether each detection, best first, is right."""
    right = np.zeros(len(detections.boxes), bool)
    wanted, given = _by_frame(truths.frames), _by_frame(detections.frames)
    for frame, places in given.items():
        if frame not in wanted:
            continue
        overlaps = box_iou(
            torch.from_numpy(detections.boxes[places].astype(np.float64)),
            torch.from_numpy(truths.boxes[wanted[frame]].astype(np.float64)),
        ).numpy()
        taken: set[int] = set()
        for place, row in zip(places, overlaps, strict=True):
            best = int(row.argmax())
            if row[best] >= iou and best not in taken:
                taken.add(best)
                right[place] = True
    return right


def _by_frame(frames: np.ndarray) -> dict[object, Sequence[int]]:
    found: dict[object, list[int]] = {}
    for place, frame in enumerate(frames.tolist()):
        found.setdefault(frame, []).append(place)
    return found  # type: ignore[return-value]


def _average_precision(right: np.ndarray, truths: int) -> float:
    if not truths:
        return float("nan")
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # The recall grows by 1/truths at each hit.
    return float(envelope[right].sum() / truths)
