"""mvitv2-det export as its users call it, in process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_detector import save_detector

from mvitv2_det.commands import main
from mvitv2_det.exported_input import ExportedInput
from mvitv2_det.predict import Predictor


@pytest.fixture(scope="module")
def request_of(tmp_path_factory):
    """Gives the arguments for a small detector, without ``--output``."""
    detector = save_detector(tmp_path_factory.mktemp("detector"))

    def arguments(part="backbone", format="torchscript"):
        return [
            *("export", "--config", detector.config, "--weights", detector.weights),
            *("--part", part, "--format", format, "--image-size", "64", "96"),
        ]

    return arguments


def test_backbone(request_of, tmp_path, capsys):
    file = tmp_path / "backbone.pt"
    assert main([*request_of(), "--output", str(file)]) == 0
    assert "the backbone as torchscript, largest relative error " in capsys.readouterr().out
    assert len(torch.jit.load(str(file))(torch.zeros(1, 3, 64, 96))) == 5  # p2 to p6


def test_detector_compared_on_an_image(request_of, tmp_path, capsys):
    file, image = tmp_path / "detector.pt", tmp_path / "i.png"
    Image.effect_noise((80, 60), 50).convert("RGB").save(image)
    arguments = [*request_of("detector"), "--output", str(file), "--check-image", str(image)]
    assert main(arguments) == 0
    assert "on images of 64×96 with " in capsys.readouterr().out
    boxes, classes, scores, masks = torch.jit.load(str(file))(torch.zeros(3, 64, 96))
    assert len(boxes) == len(classes) == len(scores) == len(masks)


@pytest.mark.long
def test_onnx_in_int8_says_what_it_takes(request_of, tmp_path, capsys):
    """Its input of a photo is the predictor's; of 8 bits it finds something in it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    image, file = tmp_path / "i.png", tmp_path / "int8.onnx"
    Image.effect_noise((80, 60), 50).convert("RGB").save(image)
    arguments = [*request_of("detector", "onnx"), "--dynamic", "--precision", "int8"]
    assert main([*arguments, "--output", str(file)]) == 0
    assert "of the instances are found with or without int8 alone" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(file))
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["class 0", "class 1"]
    pixels, scale = ExportedInput.read(file)(image)
    config, weights = arguments[2], arguments[4]
    expected = Predictor(config, weights).prepare(image)["image"].numpy()
    assert np.array_equal(pixels, expected)
    assert scale == (expected.shape[2] / 80, expected.shape[1] / 60)
    boxes, *_ = session.run(None, {"image": pixels})
    assert len(boxes) > 3
    # Of a network this small most is no linear layer.
    assert file.stat().st_size < 0.9 * Path(weights).stat().st_size


@pytest.mark.parametrize(
    ("part", "format", "options", "words"),
    [
        ("backbone", "torchscript", ["--output", "none/b.pt"], "--output: there is no folder none"),
        ("backbone", "torchscript", ["--check-image", "none.jpg"], "cannot read image none.jpg"),
        ("backbone", "torchscript", ["--precision", "int8"], "int8 is for the format onnx alone"),
        ("backbone", "onnx", ["--precision", "int4"], "precision must be one of fp32, int8"),
        ("neck", "onnx", [], "part must be one of backbone, detector, classifier, got 'neck'"),
        ("detector", "torch_export", [], "a detector cannot be exported with torch_export"),
        ("backbone", "torchscript", ["--weights", "none.pth"], "none.pth"),
    ],
)
def test_mistakes_are_one_line(part, format, options, words, request_of, tmp_path, capsys):
    arguments = [*request_of(part, format), "--output", str(tmp_path / "file"), *options]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "file").exists()
