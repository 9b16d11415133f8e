"""Frame mAP against a plain slow one, scikit-learn's curve, and figures of ActivityNet's code."""

import csv

import numpy as np
import pytest
from reference.frame_map import average_precision
from sklearn.metrics import precision_recall_curve

from mvitv2_det.video.frame_map import Boxes, average_precisions, mean_average_precision


def random_boxes(rng, count, frames, actions):
    corner = rng.integers(0, 6, (count, 2)) / 10
    size = rng.integers(1, 5, (count, 2)) / 10
    return Boxes(
        rng.integers(0, frames, count),
        np.concatenate((corner, corner + size), 1),
        rng.integers(1, actions + 1, count),
        rng.integers(0, 8, count) / 8,
    )


def slowly(truths, detections, action, iou):
    wanted, given = (
        [
            (frame, box.tolist(), score)
            for frame, box, of, score in zip(*boxes, strict=True)
            if of == action
        ]
        for boxes in (truths, detections)
    )
    return average_precision([each[:2] for each in wanted], given, iou)


@pytest.mark.parametrize("seed", range(12))
def test_equals_a_plain_one(seed):
    """Few places and scores, so that ties, duplicates and IoUs of exactly 0.5 occur; to 1e-12."""
    rng = np.random.default_rng(seed)
    truths, detections = random_boxes(rng, 40, 6, 4), random_boxes(rng, 150, 7, 5)
    found = average_precisions(truths, detections, range(1, 7))
    assert np.isnan(found[5]) and np.isnan(found[6])
    for action in range(1, 5):
        expected = slowly(truths, detections, action, 0.5)
        assert found[action] == pytest.approx(expected, abs=1e-12)
    assert 0 < mean_average_precision(found) < 1


def test_area_is_that_below_scikit_learns_curve():
    """One truth in each frame, all found: what remains is the ranking."""
    rng = np.random.default_rng(0)
    right, scores = rng.random(60) < 0.4, rng.permutation(60) / 60
    box, other = np.array([0.0, 0, 1, 1]), np.array([5.0, 5, 6, 6])
    truths = Boxes(
        np.flatnonzero(right), np.tile(box, (right.sum(), 1)), *np.ones((2, right.sum()))
    )
    boxes = np.where(right[:, None], box, other)
    found = average_precisions(truths, Boxes(np.arange(60), boxes, np.ones(60), scores), [1])
    precision, recall, _ = precision_recall_curve(right, scores)
    envelope = np.maximum.accumulate(precision)  # recall descends
    assert found[1] == pytest.approx(-np.sum(np.diff(recall) * envelope[:-1]), abs=1e-12)


def read(path, scored):
    rows = list(csv.reader(path.read_text().splitlines()))
    return Boxes(
        np.array([f"{row[0]},{row[1]}" for row in rows]),
        np.array([row[2:6] for row in rows], float),
        np.array([row[6] for row in rows], int),
        np.array([row[7] if scored else 0 for row in rows], float),
    )


def test_figures_of_activitynets_code(shared_data):
    """Of mmaction2's sample pair; the figures are those of ``ava_evaluation`` of PySlowFast."""
    folder = shared_data("video") / "ava_eval"
    truths, detections = read(folder / "gt.csv", False), read(folder / "pred.csv", True)
    found = average_precisions(truths, detections, [1, 2, 3])
    expected = {1: 0.17045454545454547, 2: 0.0, 3: 0.1111111111111111}
    assert found == pytest.approx(expected, abs=1e-15)
    assert mean_average_precision(found) == pytest.approx(0.09385521885521886, abs=1e-15)
    found = average_precisions(truths, detections, [1, 3])
    assert mean_average_precision(found) == pytest.approx(0.1407828282828283, abs=1e-15)


def test_nothing_found_is_zero_and_no_truth_is_no_figure():
    rng = np.random.default_rng(0)
    some, none = (
        random_boxes(rng, 3, 2, 1),
        Boxes(*(each[:0] for each in random_boxes(rng, 3, 2, 1))),
    )
    assert average_precisions(some, none, [1]) == {1: 0.0}
    assert np.isnan(mean_average_precision(average_precisions(none, some, [1])))
