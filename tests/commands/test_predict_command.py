"""mvitv2-det predict as its users call it, in process."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import av
import cv2
import numpy as np
import pytest
from conftest import dataset_overrides
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from small_detector import save_detector

from mvitv2_det.commands import main
from mvitv2_det.predict import Predictor
from mvitv2_det.predict.__main__ import main as predict_module
from mvitv2_det.predict.inputs import Source
from mvitv2_det.predict.outputs import OutputFolder, _overlay_files
from mvitv2_det.video.with_av import require_av
from mvitv2_det.visualize.instances import resized

pytestmark = pytest.mark.usefixtures("fresh_loggers")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture
def call(detector, tmp_path, capfd):
    """Calls the command on inputs; returns status, standard error's error lines, and results."""

    def run(*arguments, threshold="0.05", draws=False, output=tmp_path / "out"):
        if not draws:
            arguments = ("--no-overlays", *arguments)
        arguments = [*map(str, arguments), "--config", detector.config]
        arguments += ["--weights", detector.weights]
        arguments += ["--output", str(output), "--score-threshold", threshold]
        status = main(["predict", *arguments, "--device", "cpu"])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        file = output / "results.json"
        return status, lines, json.loads(file.read_text()) if file.exists() else None

    return run


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        size = (48, 64, 3) if "2" in name else (40, 70, 3)
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def by_image(results):
    return Counter(result["file_name"] for result in results)


def test_results_are_those_of_evaluation(detector, coco_folder, call):
    """Against the json that train --eval-only leaves; batches of one are the same."""
    own = dataset_overrides(coco_folder)
    arguments = ["--config-file", detector.config, "--eval-only", *own]
    arguments += [f"train.init_checkpoint={detector.weights}"]
    assert main(["train", *arguments, f"train.output_dir={coco_folder}/run"]) == 0
    file = coco_folder / "run" / "inference" / "coco_instances_results.json"
    expected = json.loads(file.read_text())
    assert len(expected) > 10
    options = ("--batch-size", "1", "--opts", *own)
    status, _, results = call(coco_folder / "val", *options)
    assert status == 0
    for result in results:
        assert result.pop("file_name") == f"{result['image_id']}.png"
    assert results == expected
    assert not (coco_folder / "out" / "overlays").exists()


def test_results_load_as_coco(photos, call):
    status, _, results = call(photos / "a", photos / "b")
    assert status == 0
    coco = COCO(str(photos / "out" / "images.json"))
    loaded = coco.loadRes(str(photos / "out" / "results.json"))
    assert [image["file_name"] for image in coco.loadImgs([1, 2, 3])] == [
        "a/1.png",
        "a/2.png",
        "b/1.png",
    ]
    assert len(loaded.getAnnIds(imgIds=[1])) == by_image(results)["a/1.png"] > 0
    assert {c["name"] for c in coco.loadCats(coco.getCatIds())} == {"class 0", "class 1"}
    for result in results:
        image = coco.loadImgs([result["image_id"]])[0]
        assert coco_mask.decode(result["segmentation"]).shape == (image["height"], image["width"])


def test_overlays_are_drawn_apart(photos, call):
    Image.open(photos / "a/1.png").save(photos / "a/1.tif")
    status, _, _ = call(photos / "a", photos / "b", draws=True)
    assert status == 0
    overlays = photos / "out" / "overlays"
    files = sorted(str(f.relative_to(overlays)) for f in overlays.rglob("*") if f.is_file())
    assert files == ["a/1.png", "a/1.tif.png", "a/2.png", "b/1.png"]
    for file in files[:1] + files[2:]:
        drawn, plain = (np.asarray(Image.open(root / file)) for root in (overlays, photos))
        scale = drawn.shape[0] // plain.shape[0]
        assert scale > 1 and drawn.shape == (plain.shape[0] * scale, plain.shape[1] * scale, 3)
        assert (drawn != resized(plain, scale)).any()


def test_no_two_overlays_share_a_file(tmp_path):
    names = ("1.tif", "1.tif.png", "A.jpg", "a.jpg", "1.avi", "1.avi.mp4")
    files = _overlay_files(tmp_path, [Source(tmp_path / "in" / name, name) for name in names])
    assert [file.name for file in files.values()] == [
        "1.tif.png",
        "1.tif_2.png",
        "A.jpg",
        "a_2.jpg",
        "1.avi.mp4",
        "1.avi_2.mp4",
    ]


def test_broken_inputs_are_named_and_the_rest_goes_on(photos, call):
    (photos / "a" / "1.png").write_bytes(b"")
    (photos / "a" / "3.jpg").write_text("no image")
    (photos / "a" / "4.mp4").write_text("no video")
    Image.new("RGB", (9000, 1)).save(photos / "a" / "5.png")
    status, lines, results = call(photos / "a")
    assert status == 1
    assert len(lines) == 5
    for line, words in zip(lines, ("1.png", "3.jpg", "4.mp4", "5.png", "4 of the"), strict=True):
        assert words in line
    assert set(by_image(results)) == {"2.png"}
    assert call(photos / "a/3.jpg") == (1, [lines[1], lines[4].replace("4", "1")], [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["none.png"], "there is no image, video or folder"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["--score-threshold", "50"], r"must be in \[0, 1\], got 50"),
        (["--batch-size", "0"], "must be 1 or more"),
        (["--opts", "model.x=1"], "names no key"),
        (["--weights", "none.pth"], "none.pth"),
        (["--config", "no_such_config"], "there is no config"),
    ],
)
def test_nothing_starts_with_wrong_arguments(change, words, detector, photos, capfd):
    arguments = ["--config", detector.config, "--weights", detector.weights, str(photos / "a")]
    arguments += ["--output", str(photos / "out")]
    assert main(["predict", *arguments, *change]) == 2
    (line,) = [text for text in capfd.readouterr().err.splitlines() if "error" in text]
    assert re.search(words, line)
    assert not (photos / "out" / "results.json").exists()


def test_module_is_the_same_command(detector, tmp_path, capfd):
    arguments = ["--config", detector.config, "--weights", detector.weights]
    assert predict_module([*arguments, "none.png", "--output", str(tmp_path / "out")]) == 2
    assert "there is no image, video or folder 'none.png'" in capfd.readouterr().err


def test_output_that_cannot_be_written(photos, call, tmp_path):
    (photos / "file").write_text("")
    status, (line,), _ = call(photos / "a", output=photos / "file" / "out")
    assert status == 2
    assert "cannot write to output folder" in line


def test_overlays_never_replace_inputs(photos, call):
    (photos / "out").mkdir()
    shutil.move(photos / "a", photos / "out" / "overlays")
    before = (photos / "out" / "overlays" / "1.png").read_bytes()
    status, (line,), _ = call(photos / "out" / "overlays", draws=True)
    assert status == 2
    assert "would replace that input" in line
    assert (photos / "out" / "overlays" / "1.png").read_bytes() == before


def write_video(file, count):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (count, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"mp4v"), 5.0, (64, 48))
    for frame in frames:
        writer.write(frame)
    writer.release()


def read_video(file):
    capture = cv2.VideoCapture(str(file))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return capture.get(cv2.CAP_PROP_FPS), frames


def test_videos(photos, call):
    """Frames are numbered from 0 and predicted as the images that they are."""
    write_video(photos / "a" / "0.mp4", 3)
    write_video(photos / "a" / "1.avi", 2)
    status, _, results = call(photos / "a", "--batch-size", "2", draws=True)
    assert status == 0
    content = json.loads((photos / "out" / "images.json").read_text())
    assert [(i["file_name"], i.get("frame")) for i in content["images"]] == [
        ("0.mp4", 0),
        ("0.mp4", 1),
        ("0.mp4", 2),
        ("1.avi", 0),
        ("1.avi", 1),
        ("1.png", None),
        ("2.png", None),
    ]
    assert {(r["file_name"], r.get("frame")) for r in results} >= {("0.mp4", 2), ("1.png", None)}
    for name, frames in (("0.mp4", 3), ("1.avi.mp4", 2)):
        fps, drawn = read_video(photos / "out" / "overlays" / name)
        assert fps == 5 and len(drawn) == frames
    plain = read_video(photos / "a" / "1.avi")[1][0]
    assert (drawn[0] != resized(plain, drawn[0].shape[0] / plain.shape[0])).mean() > 0.1


def test_videos_are_of_a_kind_that_browsers_play(photos, call):
    """H.264 in YUV 4:2:0 with the index in front, in an MP4."""
    write_video(photos / "0.mp4", 3)
    assert call(photos / "0.mp4", draws=True)[0] == 0
    file = photos / "out" / "overlays" / "0.mp4"
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 5
    content = file.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


@pytest.mark.long
def test_a_browser_plays_videos(photos, call):
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("there is no chromium")
    write_video(photos / "0.mp4", 3)
    assert call(photos / "0.mp4", draws=True)[0] == 0
    (photos / "page.html").write_text("""<video muted autoplay src="out/overlays/0.mp4"
        onended="fetch(`/played-${this.videoWidth}-${this.videoHeight}`)"></video>""")
    asked, ended = [], threading.Event()

    class Server(SimpleHTTPRequestHandler):
        def log_message(self, text, *values):
            asked.append(self.path)
            if self.path.startswith("/played"):
                ended.set()

    handler = partial(Server, directory=str(photos))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += ["--no-first-run", "--disable-component-update", "--disable-sync"]
    options += ["--autoplay-policy=no-user-gesture-required"]
    options += [f"--user-data-dir={photos / 'browser'}", "--remote-debugging-port=0"]
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [chromium, *options, f"http://127.0.0.1:{server.server_port}/page.html"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as browser:
            ended.wait(120)
            browser.terminate()
        server.shutdown()
    assert "/played-576-432" in asked


def test_videos_need_pyav_to_be_drawn(photos, call, monkeypatch):
    write_video(photos / "0.mp4", 3)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "av", None)
        require_av.cache_clear()
        status, (line,), _ = call(photos / "0.mp4", draws=True)
    require_av.cache_clear()
    assert status == 2 and "mvitv2_det[video]" in line
    assert call(photos / "0.mp4")[0] == 0


def test_frames_are_predicted_as_images_are(detector, photos, call):
    write_video(photos / "0.mp4", 2)
    _, _, results = call(photos / "0.mp4", "--batch-size", "1")
    _, frames = read_video(photos / "0.mp4")
    predictor = Predictor(detector.config, detector.weights, channel_order="BGR", device="cpu")
    found = predictor(frames[1])
    assert [r["score"] for r in results if r["frame"] == 1] == found.scores.tolist()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_what_was_found(number, photos, call, monkeypatch):
    """The old json stays whole until the new one is; no half of anything is left."""
    write_video(photos / "a" / "0.mp4", 4)
    (photos / "out").mkdir()
    (photos / "out" / "results.json").write_text("[]")
    add, seen = OutputFolder.add, []

    def interrupted(self, predicted):
        add(self, predicted)
        if len(seen) == 2:
            os.kill(os.getpid(), number)
        assert (photos / "out" / "results.json").read_text() == "[]"
        seen.append(predicted.frame)

    monkeypatch.setattr(OutputFolder, "add", interrupted)
    status, _, results = call(photos / "a", draws=True)
    assert status == 130
    assert {result["frame"] for result in results} == set(seen) == {0, 1, 2}
    content = json.loads((photos / "out" / "images.json").read_text())
    assert len(content["images"]) == 3
    assert len(read_video(photos / "out" / "overlays" / "0.mp4")[1]) == 3
    assert not list((photos / "out").rglob(".*"))


def test_half_precision_and_batches(photos, call):
    status, _, results = call(photos / "a", photos / "b", "--precision", "bf16")
    assert status == 0
    assert set(by_image(results)) == {"a/1.png", "a/2.png", "b/1.png"}


def test_threshold(photos, call):
    _, _, results = call(photos / "a")
    scores = sorted(result["score"] for result in results)
    _, _, fewer = call(photos / "a", threshold=str(scores[-3]))
    assert sorted(result["score"] for result in fewer) == scores[-2:]
    assert call(photos / "a", threshold="1") == (0, [], [])
