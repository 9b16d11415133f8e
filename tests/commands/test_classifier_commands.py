"""mvitv2-det on classifiers, as users call it: classify, export and look-inside."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from recognition.classifiers import CLASSES, save_classifier
from scripts import ROOT

from mvitv2_det import Classifier
from mvitv2_det.commands import main
from mvitv2_det.recognition.files import ClassifiedFolder

pytestmark = pytest.mark.usefixtures("fresh_loggers")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    return str(save_classifier(folder / "model_final.pth", class_token=True))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        pixels = rng.integers(0, 256, (70 + index, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def classify(weights, tmp_path, capfd):
    """Calls the command; returns status, standard output, its error lines, and the results."""

    def run(*arguments):
        options = ["--weights", weights, "--output", str(tmp_path / "out"), "--device", "cpu"]
        status = main(["classify", *map(str, arguments), *options])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        file = tmp_path / "out" / "results.json"
        return status, out, errors, json.loads(file.read_text()) if file.exists() else None

    return run


def test_folder_to_table_json_and_sheet(photos, weights, classify, tmp_path):
    status, out, errors, results = classify(photos, "--batch-size", "3", "--top", "2")
    assert status == 0 and not errors
    expected = Classifier(weights, device="cpu", top=2)(sorted(photos.iterdir()))
    assert [record["file_name"] for record in results] == ["0.png", "1.png", "2.png", "3.png"]
    for record, found in zip(results, expected, strict=True):
        assert record["classes"] == [likely.name for likely in found]
        assert [CLASSES[index] for index in record["category_ids"]] == record["classes"]
        wanted = [likely.probability for likely in found]
        assert record["probabilities"] == pytest.approx(wanted, abs=2e-6)
    best = expected[0][0]
    assert f"0.png    {best.name} {100 * best.probability:.1f} %" in out
    with Image.open(tmp_path / "out" / "sheet_1.png") as sheet:
        assert sheet.width > 1000


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(photos, classify, tmp_path):
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:500])
    (photos / "a.mp4").write_text("a folder's videos are left out")
    status, _, errors, results = classify(photos, "--no-sheets")
    assert status == 1
    assert f"cannot read image {photos}/1.png" in errors[0] and len(errors) == 2
    assert errors[1] == "error: 1 of the inputs could not be read, see above"
    assert [record["file_name"] for record in results] == ["0.png", "2.png", "3.png"]
    assert not list((tmp_path / "out").glob("sheet*"))


def test_an_interrupt_keeps_what_was_found(photos, classify, monkeypatch, tmp_path):
    add = ClassifiedFolder.add

    def interrupted(self, *arguments):
        add(self, *arguments)
        if self.images == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ClassifiedFolder, "add", interrupted)
    status, _, _, results = classify(photos, "--batch-size", "1")
    assert status == 130
    assert len(results) == 2 and (tmp_path / "out" / "sheet_1.png").exists()


def test_mistakes_are_one_line(photos, classify, tmp_path):
    def error(*arguments):
        status, _, errors, _ = classify(*arguments)
        assert status == 2 and len(errors) == 1
        return errors[0]

    (photos / "a.mp4").write_text("")
    assert "a.mp4 is a video: expected images" in error(photos / "a.mp4")
    assert "there is no image or folder 'none'" in error("none")
    (tmp_path / "empty").mkdir()
    assert "there is no image directly in folder" in error(tmp_path / "empty")
    assert "fp32, fp16, bf16" in error(photos, "--precision", "int4")
    (tmp_path / "out").mkdir(exist_ok=True)
    (photos / "0.png").rename(tmp_path / "out" / "sheet_1.png")
    assert "would replace input" in error(tmp_path / "out")


WITHOUT_DETECTRON2 = """
import sys; sys.modules["detectron2"] = None
from mvitv2_det.commands import main
weights, photos, out = sys.argv[1:]
classifier = ["--weights", weights]
assert main(["classify", photos, *classifier, "--output", out, "--device", "cpu"]) == 0
part = ["--part", "classifier", "--format", "torchscript", "--output", out + "/c.pt"]
assert main(["export", *classifier, *part, "--check-image", photos + "/0.png"]) == 0
assert main(["look-inside", photos + "/0.png", *classifier, "--output", out + "/inside"]) == 0
from mvitv2_det.visualize import draw_confusion_matrix, write_mistakes
assert not any(name.startswith("detectron2.") for name in sys.modules)
"""


@pytest.mark.long
def test_all_of_it_without_detectron2(photos, weights, tmp_path):
    answer = subprocess.run(
        [sys.executable, "-c", WITHOUT_DETECTRON2, weights, str(photos), str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    files = {file.name for file in (tmp_path / "out").rglob("*.*")}
    assert {"results.json", "sheet_1.png", "c.pt", "attention_block_3.png"} <= files
    # Traced with two images, it takes any number.
    traced = torch.jit.load(tmp_path / "out" / "c.pt")
    assert traced(torch.zeros(5, 3, 64, 64)).shape == (5, 3)


def test_look_inside_from_the_token_and_from_a_place(photos, weights, tmp_path, capsys):
    arguments = ["look-inside", str(photos / "0.png"), "--weights", weights]
    arguments += ["--output", str(tmp_path)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("attention_block_") == 4
    assert main([*arguments, "--position", "30", "40", "--block", "1"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/attention_block_1.png\n"

    def error(*options):
        assert main([*arguments, *options]) == 2
        return capsys.readouterr().err

    assert "is cut off: the network sees" in error("--position", "0", "0")
    assert "inside of the image of height 70 and width 90" in error("--position", "70", "0")
    assert "give --config, too" in error("--opts", "a=1")


def test_export_mistakes_are_one_line(weights, tmp_path, capsys):
    arguments = ["export", "--part", "classifier", "--format", "torchscript"]
    arguments += ["--weights", weights, "--output", str(tmp_path / "c.pt")]

    def error(*options):
        assert main([*arguments, *options]) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: ") and printed.count("\n") == 1
        return printed

    assert "takes no --config" in error("--config", "demo")
    assert "a classifier takes squares" in error("--image-size", "64", "96")
    assert "--part backbone needs --config" in error("--part", "backbone")
    assert not (tmp_path / "c.pt").exists()
