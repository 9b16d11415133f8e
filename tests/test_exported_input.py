"""The input of an exported file, beside Detectron2's own transforms."""

import json
import subprocess
import sys

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image
from small_detector import save_detector

from mvitv2_det import Predictor, UserError
from mvitv2_det.export.metadata import metadata_of
from mvitv2_det.exported_input import ExportedInput
from mvitv2_det.trained import read_trained

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def exported_input(**changes) -> ExportedInput:
    values = {"short_side": 96, "long_side": 160, "size": None, "channel_order": "RGB"}
    values |= {"mean": MEAN, "std": STD, "normalised": False}
    return ExportedInput(**values | changes)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(96, 96), (37, 53), (211, 100), (400, 90), (90, 400), (97, 161)])
def test_is_detectron2s_bit_for_bit(size):
    """Enlarged and shrunk, by the short side and by the long one."""
    rgb = picture(*size)
    expected = T.AugInput(rgb)
    T.ResizeShortestEdge(96, 160)(expected)
    found, scale = exported_input()(rgb)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected.image.transpose(2, 0, 1))
    height, width = expected.image.shape[:2]
    assert scale == (width / size[1], height / size[0])


def test_order_of_channels_and_normalisation():
    found, _ = exported_input()(picture(50, 70))
    bgr, _ = exported_input(channel_order="BGR")(picture(50, 70))
    assert np.array_equal(bgr, found[::-1])
    normalised, _ = exported_input(normalised=True)(picture(50, 70))
    expected = (found - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert normalised.shape == (1, *found.shape)
    assert np.abs(normalised[0] - expected).max() < 1e-5  # float32


@pytest.mark.parametrize("size", [(96, 160), (128, 128), (40, 500)])
def test_a_file_of_one_size_gets_its_size(size):
    """The picture is whole, with its own proportions; the mean is around it."""
    found, (x, y) = exported_input(size=size)(picture(64, 128))
    assert found.shape == (3, *size)
    height, width = round(64 * y), round(128 * x)
    assert height <= size[0] and width <= size[1] and abs(x - y) < 0.02
    assert min(height, 96) == height
    rest = found.copy()
    rest[:, :height, :width] = np.reshape(MEAN, (3, 1, 1))
    assert np.abs(rest - np.reshape(MEAN, (3, 1, 1))).max() < 1e-4
    resized = Image.fromarray(picture(64, 128)).resize((width, height), Image.Resampling.BILINEAR)
    assert np.array_equal(found[:, :height, :width], np.asarray(resized).transpose(2, 0, 1))


def test_a_config_says_what_its_files_take(tmp_path):
    """The input that prediction makes, and the classes; nothing where evaluation does more."""
    detector = save_detector(tmp_path)
    model = read_trained(detector.cfg, detector.weights)
    texts = metadata_of(detector.cfg, model, "detector", None)
    assert json.loads(texts["classes"]) == ["class 0", "class 1"]
    file = tmp_path / "photo.png"
    Image.fromarray(picture(60, 80)).save(file)
    expected = Predictor(detector.config, detector.weights).prepare(file)["image"]
    found, _ = ExportedInput.from_json(texts["input"])(file)
    assert np.array_equal(found, expected.numpy())
    texts = metadata_of(detector.cfg, model, "backbone", (64, 96))
    backbone = ExportedInput.from_json(texts.pop("input"))
    assert backbone.normalised and backbone.size == (64, 96) and texts == {}
    flip = {"_target_": "detectron2.data.transforms.RandomFlip"}
    detector.cfg.dataloader.test.mapper.augmentations.append(flip)
    assert list(metadata_of(detector.cfg, model, "detector", None)) == ["classes"]


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="an image of 1000×1 cannot be resized"):
        exported_input()(picture(1000, 1))
    with pytest.raises(UserError, match=r"cannot read image .*none\.png"):
        exported_input()(tmp_path / "none.png")
    for text in ("[1]", "{", json.dumps({"size": 224})):
        with pytest.raises(UserError, match="not the input of an exported detector or backbone"):
            ExportedInput.from_json(text)
    pytest.importorskip("onnxruntime")
    (tmp_path / "no.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match=r"cannot read .*no\.onnx"):
        ExportedInput.read(tmp_path / "no.onnx")


def test_needs_neither_torch_nor_detectron2():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['detectron2'] = None\n"
        "import mvitv2_det.exported_input"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
