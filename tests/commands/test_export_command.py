"""mvitv2-det export as its users call it, in process."""

import pytest
import torch
from PIL import Image
from small_detector import save_detector

from mvitv2_det.commands import main


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


@pytest.mark.parametrize(
    ("part", "format", "options", "words"),
    [
        ("backbone", "torchscript", ["--output", "none/b.pt"], "--output: there is no folder none"),
        ("backbone", "torchscript", ["--check-image", "none.jpg"], "cannot read image none.jpg"),
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
