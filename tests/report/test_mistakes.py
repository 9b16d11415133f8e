"""Kinds of mistakes against tidecv 1.0.1, whose answers for these scenes are written here."""

import json

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval
from scenes import scene

from mvitv2_det import UserError
from mvitv2_det.report.evaluation import Truth, evaluate_task, pair_images, read_predictions
from mvitv2_det.report.mistakes import KINDS, confusion, judge

# AP50 as it is, and of each kind of KINDS in order: how many there are, and the AP50 gained.
TIDE = {
    1: (15.3453, "11 4.4438  49 19.8553  11 1.5662  10 1.0210  38 2.9389  41 8.8706"),
    2: (12.9962, "9 1.6620  44 20.2967  12 1.2899  9 0.3474  31 3.6440  49 10.2777"),
}


@pytest.fixture
def read(tmp_path):
    """Writes a scene; returns its truth and predictions as the report reads them."""

    def read(content, results):
        (tmp_path / "val.json").write_text(json.dumps(content))
        (tmp_path / "results.json").write_text(json.dumps(results))
        truth = Truth(tmp_path / "val.json")
        return truth, read_predictions(tmp_path / "results.json", truth)

    return read


@pytest.mark.parametrize("seed", TIDE)
def test_kinds_are_those_of_tide(read, seed):
    truth, results = read(*scene(40, seed=seed))
    judged = judge(pair_images(truth, results, "bbox"), truth.categories)
    expected, kinds = TIDE[seed]
    assert judged.ap50() == pytest.approx(expected, abs=1e-4)
    found = [(judged.count(kind), judged.ap50(kind) - judged.ap50()) for kind in KINDS]
    numbers = [float(number) for number in kinds.split()]
    assert [count for count, _ in found] == numbers[::2]
    assert [gain for _, gain in found] == pytest.approx(numbers[1::2], abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_ap50_is_that_of_pycocotools(read, seed):
    truth, results = read(*scene(20, seed=seed))
    judged = judge(pair_images(truth, results, "bbox"), truth.categories)
    mean = evaluate_task(truth, results, "bbox").mean()
    assert judged.ap50() == pytest.approx(mean.ap50, abs=1e-9)
    assert 0 < mean.ap < mean.ap50 and mean.instances == len(judged.found)
    evaluation = COCOeval(truth.coco, truth.coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    summary = [100 * evaluation.stats[place] for place in (0, 1, 2, 3, 4, 5, 8)]
    summary = [float("nan") if value < 0 else value for value in summary]
    assert [getattr(mean, name) for name in (*names, "ar")] == pytest.approx(summary, nan_ok=True)


def one_image(truth, found):
    """A scene of boxes: of the truth (class, box, crowd), and found (class, box, score)."""
    annotations = [
        dict(id=i, image_id=1, category_id=c, bbox=box, area=box[2] * box[3], iscrowd=crowd)
        for i, (c, box, crowd) in enumerate(truth, start=1)
    ]
    image = {"id": 1, "file_name": "1.png", "width": 200, "height": 200}
    categories = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]
    results = [dict(image_id=1, category_id=c, bbox=box, score=s) for c, box, s in found]
    return dict(images=[image], annotations=annotations, categories=categories), results


CROWDED = one_image(
    [(4, [0, 0, 20, 20], 0), (9, [50, 0, 20, 20], 0), (4, [100, 0, 20, 20], 0),
     (4, [100, 100, 90, 90], 1)],
    [
        (4, [1, 0, 20, 20], 0.9),  # right
        (4, [0, 1, 20, 20], 0.8),  # again
        (4, [50, 0, 20, 20], 0.7),  # a dog
        (4, [110, 0, 20, 20], 0.6),  # half beside
        (4, [120, 120, 10, 10], 0.5),  # in the crowd
        (9, [0, 150, 10, 10], 0.4),  # nothing there
        (9, [10, 0, 20, 20], 0.3),  # of another class, and half beside
    ],
)  # fmt: skip


def test_each_kind(read):
    truth, results = read(*CROWDED)
    judged = judge(pair_images(truth, results, "bbox"), truth.categories)
    assert judged.kinds.tolist() == [
        "right", "duplicate", "class", "place", "in a crowd", "background", "both",
    ]  # fmt: skip
    assert judged.count("missed") == 0 and judged.found.tolist() == [True, False, False]
    assert judged.per_image(1, 0.65).tolist() == [[1, 2, 2]]
    # Best by F1: the first alone, 2 · 1 / (1 + 3).
    assert judged.best_threshold() == (0.9, 0.5)


def test_confusion(read):
    truth, results = read(*CROWDED)
    pairs = list(pair_images(truth, results, "bbox"))
    # Rows and columns: cat, dog, nothing.
    expected = [[1, 0, 1], [1, 0, 0], [2, 2, 0]]
    assert confusion(pairs, truth.categories, 0.0).tolist() == expected
    assert confusion(pairs, truth.categories, 0.95).tolist() == [[0, 0, 2], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    "scene", [([], []), ([(4, [0, 0, 9, 9], 0)], []), ([], [(4, [0, 0, 9, 9], 1)])]
)
def test_nothing_there_or_nothing_found(read, scene):
    truth, results = read(*one_image(*scene))
    judged = judge(pair_images(truth, results, "bbox"), truth.categories)
    assert np.isnan(judged.ap50()) or judged.ap50() == 0
    assert judged.best_threshold()[1] == 0
    assert evaluate_task(truth, results, "bbox").mean().instances == len(scene[0])
    assert confusion([*pair_images(truth, results, "bbox")], truth.categories, 0.5).sum() <= 1


@pytest.mark.parametrize(
    ("change", "words"), [({"image_id": 77}, "image 77"), ({"category_id": 5}, "category 5")]
)
def test_predictions_of_other_data(read, change, words):
    content, results = CROWDED
    with pytest.raises(UserError, match=words):
        read(content, [{**results[0], **change}])
