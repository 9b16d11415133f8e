"""Which mistakes a detector makes, and how much of its AP50 each kind costs.

The kinds and the way of counting are those of TIDE: Bolya et al., "TIDE: A General Toolbox for
Identifying Object Detection Errors", ECCV 2020, sections 2.2 and 2.3, at its thresholds: what
overlaps a truth by 0.5 or more is in its place, by less than 0.1 on the background.

Axes: D detections, G truths.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .evaluation import ImagePairs

IN_PLACE, BACKGROUND = 0.5, 0.1
RIGHT, IGNORED = "right", "in a crowd"
# Each kind: what it is, and what the oracle does that shows its cost.
KINDS = {
    "class": "in place, but of another class",
    "place": "of the right class, but out of place (IoU 0.1 to 0.5)",
    "both": "of another class and out of place",
    "duplicate": "another detection of what is found already",
    "background": "where there is nothing (IoU below 0.1)",
    "missed": "a truth that no detection comes near",
}


@dataclass(frozen=True)
class Judged:
    """All detections and truths.

    Attributes:
        scores, labels, images: (D,) of the detections; labels are numbers of classes.
        kinds: (D,) :data:`RIGHT`, :data:`IGNORED`, or one of :data:`KINDS`.
        targets: (D,) number of the truth that a detection is, or is taken for; -1 for none.
        truth_labels, truth_images, found: (G,) of the truths, without crowds.
    """

    scores: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    kinds: np.ndarray
    targets: np.ndarray
    truth_labels: np.ndarray
    truth_images: np.ndarray
    found: np.ndarray

    def missed(self) -> np.ndarray:
        """(G,) bool: truths that are not found, nor would be by a better class or place."""
        missed = ~self.found
        missed[self.targets[self._could_be_right()]] = False
        return missed

    def count(self, kind: str) -> int:
        """How many detections, or truths missed, are of a kind."""
        return int(self.missed().sum() if kind == "missed" else (self.kinds == kind).sum())

    def ap50(self, fixed: str | None = None) -> float:
        """AP50 in percent: as it is, or if an oracle put one kind of mistake right.

        A detection of a wrong class or place becomes right, unless another is surer of the same
        truth; one of the other kinds is dropped; missed truths do not count.
        """
        labels, correct = self.labels.copy(), self.kinds == RIGHT
        kept = self.kinds != IGNORED
        truths = np.ones(len(self.found), bool)
        if fixed in ("class", "place"):
            chosen = self.kinds == fixed
            best = np.zeros(len(labels), bool)
            best[self._surest()] = True
            kept &= ~chosen | best
            correct |= chosen & best
            labels[chosen & best] = self.truth_labels[self.targets[chosen & best]]
        elif fixed == "missed":
            truths = ~self.missed()
        elif fixed is not None:
            kept &= self.kinds != fixed
        precisions = [
            average_precision(
                self.scores[kept & (labels == label)],
                correct[kept & (labels == label)],
                int((truths & (self.truth_labels == label)).sum()),
            )
            for label in np.unique(self.truth_labels)
        ]
        return float(100 * np.mean(precisions)) if precisions else float("nan")

    def _could_be_right(self) -> np.ndarray:
        """Numbers of detections that a better class or place would make right."""
        candidates = np.flatnonzero((self.kinds == "class") | (self.kinds == "place"))
        return candidates[~self.found[self.targets[candidates]]]

    def _surest(self) -> list[int]:
        """Finds the surest of the detections that could be right, one for each truth."""
        surest: dict[int, int] = {}
        for one in self._could_be_right().tolist():
            rival = surest.setdefault(int(self.targets[one]), one)
            if self.scores[one] > self.scores[rival]:
                surest[int(self.targets[one])] = one
        return list(surest.values())

    def best_threshold(self) -> tuple[float, float]:
        """The score threshold of the highest F1 (at an IoU of 0.5), and that F1."""
        counted = self.kinds != IGNORED
        order = np.argsort(-self.scores[counted], kind="stable")
        scores = self.scores[counted][order]
        right = np.cumsum((self.kinds[counted] == RIGHT)[order])
        f1 = 2 * right / np.maximum(np.arange(1, len(right) + 1) + len(self.found), 1)
        if not len(f1):
            return 0.5, 0.0
        # As many may share a score: what is kept is decided by the last of them.
        last = np.append(scores[1:] != scores[:-1], True)
        best = int(np.argmax(np.where(last, f1, -1)))
        return float(scores[best]), float(f1[best])

    def per_image(self, count: int, threshold: float) -> np.ndarray:
        """(images, 3): of each, detections right and wrong that score higher, and truths left."""
        sure = (self.scores > threshold) & (self.kinds != IGNORED)
        right = np.bincount(self.images[sure & (self.kinds == RIGHT)], minlength=count)
        wrong = np.bincount(self.images[sure & (self.kinds != RIGHT)], minlength=count)
        truths = np.bincount(self.truth_images, minlength=count)
        return np.stack([right, wrong, truths - right], 1)


def judge(pairs: Iterable[ImagePairs], categories: list[int]) -> Judged:
    """Judges each detection.

    Args:
        pairs: the images.
        categories: ids of the classes, in the order of their numbers.
    """
    numbers = {category: number for number, category in enumerate(categories)}
    rows: list[tuple[float, int, int, str, int]] = []
    truths: list[tuple[int, int, bool]] = []
    for index, pair in enumerate(pairs):
        labels = np.array([numbers[one["category_id"]] for one in pair.detections], int)
        all_labels = np.array([numbers[one["category_id"]] for one in pair.truth], int)
        crowds = np.array([bool(one.get("iscrowd", 0)) for one in pair.truth], bool)
        same = labels[:, None] == all_labels
        in_crowd = ((pair.ious >= IN_PLACE) & same)[:, crowds].any(1)
        kinds, targets, found = _judge_image(pair.ious[:, ~crowds], same[:, ~crowds], in_crowd)
        for one, label, kind, target in zip(pair.detections, labels, kinds, targets, strict=True):
            place = len(truths) + target if target >= 0 else -1
            rows.append((one["score"], int(label), index, kind, place))
        truths += [
            (int(a), index, bool(b)) for a, b in zip(all_labels[~crowds], found, strict=True)
        ]
    columns = list(zip(*rows, strict=True)) or [()] * 5
    truth_columns = list(zip(*truths, strict=True)) or [()] * 3
    return Judged(
        np.array(columns[0], float),
        np.array(columns[1], int),
        np.array(columns[2], int),
        np.array(columns[3], dtype="<U12"),
        np.array(columns[4], int),
        np.array(truth_columns[0], int),
        np.array(truth_columns[1], int),
        np.array(truth_columns[2], bool),
    )


def _judge_image(
    ious: np.ndarray, same: np.ndarray, in_crowd: np.ndarray
) -> tuple[list[str], list[int], np.ndarray]:
    """Judges the detections of an image, by descending score.

    Args:
        ious: (D, G) without crowds.
        same: (D, G) bool, of one class.
        in_crowd: (D,) bool.

    Returns:
        kinds (D), targets (D) and which truths are found (G,).
    """
    own, others = ious * same, ious * ~same
    free, found = own.copy(), np.zeros(ious.shape[1], bool)
    targets = [-1] * len(ious)
    if ious.shape[1]:
        for one in range(len(ious)):
            best = int(free[one].argmax())
            if free[one, best] >= IN_PLACE:
                targets[one], found[best], free[:, best] = best, True, 0
    kinds = []
    for one in range(len(ious)):
        if targets[one] >= 0:
            kinds.append(RIGHT)
        elif in_crowd[one]:
            kinds.append(IGNORED)
        elif not ious.shape[1]:
            kinds.append("background")
        elif BACKGROUND <= own[one].max() < IN_PLACE:
            kinds.append("place")
            targets[one] = int(own[one].argmax())
        elif others[one].max() >= IN_PLACE:
            kinds.append("class")
            targets[one] = int(others[one].argmax())
        elif own[one].max() >= IN_PLACE:
            kinds.append("duplicate")
        else:
            kinds.append("background" if ious[one].max() < BACKGROUND else "both")
    return kinds, targets, found


def average_precision(scores: np.ndarray, correct: np.ndarray, truths: int) -> float:
    """Area under the precision-recall curve at COCO's 101 recalls, in [0, 1]."""
    if not truths:
        return 0.0
    right = np.cumsum(correct[np.argsort(-scores, kind="stable")])
    precision = right / np.arange(1, len(right) + 1)
    # The highest precision of this recall or a higher one.
    precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
    places = np.searchsorted(right / truths, np.linspace(0, 1, 101), side="left")
    return float(precision[places].mean())


def confusion(pairs: Iterable[ImagePairs], categories: list[int], threshold: float) -> np.ndarray:
    """(K + 1, K + 1): what each truth is taken for.

    Detections that score higher than the threshold are matched to truths of any class, the surest
    first, where their IoU is 0.5 or more. The last row is of detections of nothing, the last column
    of truths without a detection; detections in crowds do not count.

    Args:
        pairs: the images.
        categories: ids of the classes.
        threshold: of scores.
    """
    numbers = {category: number for number, category in enumerate(categories)}
    none = len(categories)
    counts = np.zeros((none + 1, none + 1), int)
    for pair in pairs:
        sure = [i for i, one in enumerate(pair.detections) if one["score"] > threshold]
        crowds = np.array([bool(one.get("iscrowd", 0)) for one in pair.truth], bool)
        free = pair.ious[sure][:, ~crowds].copy()
        truth = [one for one, crowd in zip(pair.truth, crowds, strict=True) if not crowd]
        left = [numbers[one["category_id"]] for one in truth]
        for row, index in enumerate(sure):
            label = numbers[pair.detections[index]["category_id"]]
            best = int(free[row].argmax()) if free.shape[1] else -1
            if best >= 0 and free[row, best] >= IN_PLACE:
                counts[left[best], label] += 1
                left[best], free[:, best] = -1, 0
            elif not (pair.ious[index, crowds] >= IN_PLACE).any():
                counts[none, label] += 1
        for label in left:
            if label >= 0:
                counts[label, none] += 1
    return counts
