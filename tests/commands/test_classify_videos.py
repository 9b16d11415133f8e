"""mvitv2-det classify on videos, as users call it: whole videos, windows, cameras, overlays."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from recognition.classifiers import save_classifier
from recognition.clip_classifiers import noise_frames, save_clip_classifier, write_noise
from scripts import ROOT

from mvitv2_det import ClipClassifier
from mvitv2_det.commands import main
from mvitv2_det.recognition.files import ClassifiedFolder
from mvitv2_det.video import open_video

pytest.importorskip("av")
pytestmark = pytest.mark.usefixtures("fresh_loggers")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(save_clip_classifier(tmp_path_factory.mktemp("clips") / "model_final.pth"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    for seed in range(2):
        write_noise(folder / f"{seed}.mp4", seed)
    return folder


@pytest.fixture
def videos(written, tmp_path):
    return shutil.copytree(written, tmp_path / "videos")


@pytest.fixture
def classify(weights, tmp_path, capfd):
    """Calls the command; returns status, standard output, its error lines, and the results."""

    def run(*arguments, weights=weights):
        options = ["--weights", weights, "--output", str(tmp_path / "out"), "--device", "cpu"]
        status = main(["classify", *map(str, arguments), *options])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        errors = [line[line.index("error: ") :] for line in err.splitlines() if "error: " in line]
        file = tmp_path / "out" / "results.json"
        return status, out, errors, json.loads(file.read_text()) if file.exists() else None

    return run


def write_frames(folder, seed):
    folder.mkdir(parents=True)
    for number, pixels in enumerate(noise_frames(seed, count=18)):
        Image.fromarray(pixels).save(folder / f"{number}.png")


def test_whole_videos_of_all_kinds_and_one_that_cannot_be_read(videos, classify, weights, tmp_path):
    (videos / "bad.mp4").write_text("no video")
    write_frames(tmp_path / "sets" / "a", 2)
    write_frames(tmp_path / "sets" / "b", 3)
    status, out, errors, results = classify(videos, tmp_path / "sets", "--top", "2", "--overlay")
    assert status == 1
    assert f"cannot read video {videos}/bad.mp4" in errors[0]
    assert errors[1:] == ["error: 1 of the inputs could not be read, see above"]
    names = ["videos/0.mp4", "videos/1.mp4", "sets/a", "sets/b"]
    assert [record["file_name"] for record in results] == names
    expected = ClipClassifier(weights, device="cpu", top=2)([tmp_path / name for name in names])
    for record, found in zip(results, expected, strict=True):
        assert record.keys() == {"file_name", "classes", "category_ids", "probabilities"}
        assert record["classes"] == [likely.name for likely in found]
        wanted = [likely.probability for likely in found]
        assert record["probabilities"] == pytest.approx(wanted, abs=2e-6)
    assert "videos/0.mp4  " in out and "classes of 4 videos" in out
    with Image.open(tmp_path / "out" / "sheet_1.png") as sheet:
        assert sheet.width > 1000
    overlays = sorted(file.name for file in (tmp_path / "out" / "overlays").rglob("*.mp4"))
    assert overlays == ["0.mp4", "1.mp4", "a.mp4", "b.mp4"]
    (only,) = classify(videos / "0.mp4", "--no-sheets", "--top", "2")[3]
    assert only == results[0] | {"file_name": "0.mp4"}


def test_windows_to_csv_json_picture_and_overlay(videos, classify, weights, tmp_path):
    options = ["--window", "0.8", "--stride", "0.6", "--overlay", "--precision", "fp32"]
    status, out, _, results = classify(videos / "0.mp4", *options, "--batch-size", "3")
    assert status == 0 and "0.mp4 0.6–1.4 s" in out
    moments = ClipClassifier(weights, device="cpu").timeline(videos / "0.mp4", 0.8, 0.6)
    assert [(record["start"], record["end"]) for record in results] == [
        (0.0, 0.8), (0.6, 1.4), (1.2, 2.0)
    ]  # fmt: skip
    assert [r["classes"] for r in results] == [[one.name for one in m.classes] for m in moments]
    with open(tmp_path / "out" / "timeline.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and rows[4]["place"] == "2" and rows[4]["start"] == "0.600"
    assert [row["class"] for row in rows[3:6]] == results[1]["classes"]
    with Image.open(tmp_path / "out" / "timelines" / "0.mp4.png") as picture:
        assert picture.width > 1000
    with (
        open_video(videos / "0.mp4") as before,
        open_video(tmp_path / "out" / "overlays" / "0.mp4") as after,
    ):
        assert len(after) == len(before) == 30 and after.fps == pytest.approx(15)
        changed = np.abs(after.frames(range(30)).astype(int) - before.frames(range(30))).mean(-1)
    # Labels are in the upper left; the rest is as it was, but for the encoder.
    assert changed[:, :10, :40].mean() > 25 > 12 > changed[:, -20:, -20:].mean()


class StandIn:
    """What OpenCV gives for a camera: a few frames, then nothing; Ctrl-C at one of them."""

    def __init__(self, source):
        self.source, self.number = source, 0

    def isOpened(self):
        return self.source == 0

    def read(self):
        self.number += 1
        if self.number > 20:
            os.kill(os.getpid(), signal.SIGINT)
        return True, noise_frames(self.number, count=1)[0][:, :, ::-1]

    def release(self):
        pass


def test_a_camera_until_ctrl_c(classify, monkeypatch, tmp_path):
    monkeypatch.setattr(cv2, "VideoCapture", StandIn)
    clock = iter(np.arange(1000) / 10)
    # The module's own, as others ask the clock as well.
    time = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("mvitv2_det.video.with_opencv.time", time)
    status, out, _, results = classify("--camera", "0", "--overlay")
    assert status == 130
    # Frames at 0, 0.1, …, 2.0 s; a window of 0.4 s is complete as the frame after it comes.
    assert [record["start"] for record in results] == pytest.approx([0, 0.4, 0.8, 1.2, 1.6])
    assert out.startswith("0.0–0.4 s  ") and "camera_0 0.4–0.8 s" in out
    assert (tmp_path / "out" / "timelines" / "camera_0.png").exists()
    with open_video(tmp_path / "out" / "overlays" / "camera_0.mp4") as video:
        # 21 frames of 10 a second at a rate of 30, the last for one.
        assert len(video) == pytest.approx(61, abs=1)
    assert "cannot read camera 7" in classify("--camera", "7")[2][0]


def test_a_stream(videos, classify):
    status, _, _, results = classify("--camera", videos / "1.mp4", "--window", "1")
    assert status == 0
    assert [(record["start"], record["end"]) for record in results] == [(0, 1), (1, 2)]


def test_an_interrupt_keeps_what_was_found(videos, classify, monkeypatch, tmp_path):
    add = ClassifiedFolder.add

    def interrupted(self, *arguments):
        add(self, *arguments)
        if self.images == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ClassifiedFolder, "add", interrupted)
    status, _, _, results = classify(videos, "--window", "0.4", "--batch-size", "1")
    assert status == 130
    assert len(results) == 2 and (tmp_path / "out" / "timelines" / "0.mp4.png").exists()
    assert len((tmp_path / "out" / "timeline.csv").read_text().splitlines()) == 7


WITHOUT_DETECTRON2 = """
import sys; sys.modules["detectron2"] = None
from mvitv2_det.commands import main
weights, video, out = sys.argv[1:]
given = ["--weights", weights, "--output"]
assert main(["classify", video, *given, out, "--window", "1", "--overlay", "--device", "cpu"]) == 0
export = ["export", "--part", "classifier", "--format", "torchscript", "--frames", "6"]
assert main([*export, *given, out + "/c.pt", "--check-image", video]) == 0
assert main(["look-inside", video, "--block", "0", *given, out + "/inside"]) == 0
assert not any(name.startswith("detectron2.") for name in sys.modules)
"""


@pytest.mark.long
def test_all_of_it_without_detectron2(videos, weights, tmp_path):
    answer = subprocess.run(
        [
            *(sys.executable, "-c", WITHOUT_DETECTRON2),
            *(weights, str(videos / "0.mp4"), str(tmp_path / "out")),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    files = {file.name for file in (tmp_path / "out").rglob("*.*")}
    assert {"results.json", "timeline.csv", "0.mp4", "attention_block_0.png"} <= files
    # Traced with two clips, it takes any number, of the frames that were asked for.
    traced = torch.jit.load(tmp_path / "out" / "c.pt")
    assert traced(torch.zeros(3, 3, 6, 64, 64)).shape == (3, 3)


def test_mistakes_are_one_line(videos, classify, tmp_path):
    def error(*arguments, **options):
        status, _, errors, _ = classify(*arguments, **options)
        assert status == 2 and len(errors) == 1
        return errors[0]

    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert "a.png is an image: expected videos" in error(tmp_path / "a.png")
    assert "there is no video or folder 'none'" in error("none")
    (tmp_path / "empty").mkdir()
    assert "no video, image or folder of frames" in error(tmp_path / "empty")
    assert "name videos or a camera" in error()
    assert "name videos or a camera" in error(videos, "--camera", "0")
    assert "give --window, too" in error(videos, "--stride", "1")
    assert "at least as long as a clip" in error(videos, "--window", "0.1")
    assert "input.frames must be a number from 1 on" in error(videos, "--frames", "0")
    of_images = str(save_classifier(tmp_path / "images.pth"))
    assert "--window is of videos" in error(videos, "--window", "1", weights=of_images)
    assert "name an image" in error(weights=of_images)
    (tmp_path / "out" / "overlays").mkdir(parents=True, exist_ok=True)
    shutil.copy(videos / "0.mp4", tmp_path / "out" / "overlays")
    assert "would replace that input" in error(tmp_path / "out" / "overlays", "--overlay")
