"""Tracking of what moves through made videos, by the package trackers."""

import json
import re

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from small_detector import save_detector

from mvitv2_det.commands import main
from mvitv2_det.predict import Predictor
from mvitv2_det.predict.inputs import Source
from mvitv2_det.predict.tracking import LEAST_SCORE, NO_TRACK, Tracking, select
from mvitv2_det.visualize.instances import draw_instances

SIZE = 64, 96


@pytest.fixture(scope="module", autouse=True)
def _trackers():
    pytest.importorskip("trackers")


def found(boxes, scores, classes=None):
    count = len(boxes)
    return Instances(
        SIZE,
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        scores=torch.tensor(scores, dtype=torch.float32),
        pred_classes=torch.tensor(classes or [0] * count),
    )


def crossing(frame):
    """Boxes of two things that pass each other, one above the other."""
    x = 6 * frame
    return [x, 4, x + 16, 24], [76 - x, 40, 92 - x, 60]


@pytest.fixture
def video(tmp_path):
    """10 frames in which two bright squares pass each other."""
    file = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, SIZE[::-1])
    for frame in range(10):
        picture = np.zeros((*SIZE, 3), np.uint8)
        for left, top, right, bottom in crossing(frame):
            picture[top:bottom, left:right] = 255
        writer.write(picture)
    writer.release()
    return file


def test_numbers_are_kept_whatever_the_order_and_the_class(video):
    tracking, source = Tracking(0.5), Source(video, "clip.avi")
    upper, lower = set(), set()
    for frame in range(10):
        one, other = crossing(frame)
        boxes = [one, other] if frame % 2 else [other, one]
        result = tracking(source, frame, found(boxes, [0.9, 0.8], [frame % 3, 1]))
        assert result.pred_boxes.tensor.tolist() == boxes  # in the order that they came
        a, b = result.track_ids.tolist() if frame % 2 else result.track_ids.tolist()[::-1]
        upper.add(a)
        lower.add(b)
    # The first frame has none.
    assert {frozenset(upper), frozenset(lower)} == {
        frozenset({NO_TRACK, 1}),
        frozenset({NO_TRACK, 2}),
    }


def test_what_scores_low_is_left_out_and_helps(video):
    """A thing that is hard to see in three frames keeps its number."""
    tracking, source, seen = Tracking(0.5), Source(video, "clip.avi"), []
    for frame in range(10):
        score = 0.2 if 4 <= frame < 7 else 0.9
        result = tracking(source, frame, found([crossing(frame)[0]], [score]))
        assert len(result) == (score > 0.5)
        seen += result.track_ids.tolist()
    assert seen == [NO_TRACK] + 6 * [1]


def test_each_video_counts_from_1(video):
    tracking = Tracking(0.5)
    for name in ("a.avi", "b.avi"):
        results = [
            tracking(Source(video, name), frame, found(crossing(frame), [0.9, 0.9]))
            for frame in range(3)
        ]
        assert sorted(results[-1].track_ids.tolist()) == [1, 2]
    assert len(tracking(Source(video, "c.avi"), 0, found([], []))) == 0


def test_images_between_videos_get_no_numbers(video):
    result = Tracking(0.5)(Source(video, "1.png"), None, found(crossing(0), [0.9, 0.3]))
    assert len(result) == 1 and not result.has("track_ids")


def test_masks_in_a_list_are_chosen_as_well():
    instances = found(crossing(0), [0.9, 0.3])
    instances.pred_masks = ["one", "other"]
    assert select(instances, torch.tensor([False, True])).pred_masks == ["other"]


def bright_things(self, inputs):
    """In place of a network: the boxes of what is bright, those on the left first."""
    thresholds = {getattr(one, "test_score_thresh", None) for one in self.model.modules()}
    assert thresholds == {None, LEAST_SCORE}  # what scores low is found as well
    results = []
    for one in inputs:
        pixels = one["image"].numpy().max(0)
        scale = one["height"] / pixels.shape[0]
        _, _, parts, _ = cv2.connectedComponentsWithStats((pixels > 128).astype(np.uint8))
        boxes = [[x, y, x + w, y + h] for x, y, w, h, _ in parts[1:].tolist()]
        boxes = (np.array(sorted(boxes)).reshape(-1, 4) * scale).tolist()
        instances = found(boxes, [0.9] * len(boxes))
        instances.pred_masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(instances.pred_masks, boxes, strict=True):
            mask[round(top) : round(bottom), round(left) : round(right)] = True
        results.append(instances)
    return results


@pytest.mark.usefixtures("fresh_loggers")
def test_the_command_writes_and_draws_numbers(tmp_path, video, monkeypatch, capfd):
    """Each thing has one number and one colour from the second frame on."""
    detector = save_detector(tmp_path)
    monkeypatch.setattr(Predictor, "infer", bright_things)
    arguments = ["predict", str(video), "--config", detector.config, "--weights", detector.weights]
    arguments += ["--output", str(tmp_path / "out"), "--track"]
    assert main(arguments) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results) == 20
    numbers = {0: set(), 1: set()}
    for result in results:
        if result["frame"]:
            numbers[result["bbox"][1] > 30].add(result["track_id"])
        else:
            assert "track_id" not in result
    assert sorted(map(tuple, numbers.values())) == [(1,), (2,)]
    capture = cv2.VideoCapture(str(tmp_path / "out" / "overlays" / "clip.avi.mp4"))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1].astype(int))
    assert len(frames) == 10
    scale = frames[0].shape[0] // SIZE[0]

    def color(frame, thing):  # at its middle
        left, top, right, bottom = crossing(frame)[thing]
        y, x = (top + bottom) * scale // 2, (left + right) * scale // 2
        return frames[frame][y - 5 : y + 5, x - 5 : x + 5].mean((0, 1))

    for thing in (0, 1):
        assert np.abs(color(3, thing) - color(8, thing)).max() < 15
    assert np.abs(color(5, 0) - color(5, 1)).max() > 40
    # There is nothing to follow through images.
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "1.png"), frames[0])
    arguments[1] = str(tmp_path / "in")
    assert main(arguments) == 2
    assert "there is none among these" in capfd.readouterr().err


def test_a_number_has_its_colour_and_its_label():
    image = np.zeros((400, 400, 3), np.uint8)
    one = {"bbox": [50, 100, 150, 200], "bbox_mode": 0, "category_id": 0, "score": 0.9}

    def drawn(**change):
        return draw_instances(image, [one | change], ["a", "b"])

    def edge(picture):
        return tuple(picture[200, 100].tolist())

    colors = [edge(drawn(track_id=number)) for number in (None, 1, 2, 3)]
    assert len(set(colors)) == 4 and len(set(colors[0])) == 1  # grey
    assert edge(drawn(track_id=2, category_id=1)) == colors[2]
    assert (drawn(track_id=None)[:100] != drawn(track_id=1)[:100]).any()
    assert edge(drawn()) != edge(drawn(category_id=1))


def test_without_the_package_is_one_line(tmp_path, video, monkeypatch, capfd):
    monkeypatch.setitem(__import__("sys").modules, "trackers", None)
    arguments = ["predict", str(video), "--config", "demo", "--weights", "none.pth", "--track"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert re.search(r"pip install 'mvitv2_det\[track\]'", line)
    assert not (tmp_path / "out").exists()
