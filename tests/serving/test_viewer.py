"""What the page shows, without the page."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_detector import save_detector

from mvitv2_det import Predictor, UserError
from mvitv2_det.commands import main
from mvitv2_det.serving import viewer as viewer_module
from mvitv2_det.serving.viewer import LEAST_SCORE, Viewer
from mvitv2_det.serving.web_page import Handlers, build_page
from mvitv2_det.visualize.attention_maps import attention_of_pixel

pytestmark = pytest.mark.usefixtures("fresh_loggers")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def viewer(detector):
    return Viewer(Predictor(detector.config, detector.weights, device="cpu"))


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def boxes(annotations):
    return np.array([one["bbox"] for one in annotations])


def test_instances_over_a_threshold_are_those_of_prediction(detector, viewer, photo):
    """Float32: the network is asked once, at a low threshold; the picture is six times as large."""
    seen = viewer.look(photo)
    height, width = seen.picture.shape[:2]
    assert (height, width) == (400, 700) and len(seen.annotations) > 10
    scores = [one["score"] for one in seen.annotations]
    threshold = scores[len(scores) // 2]
    predictor = Predictor(
        detector.config, detector.weights, device="cpu", score_threshold=threshold
    )
    expected, shown = predictor(str(photo)), seen.over(threshold)
    assert [one["score"] for one in shown] == expected.scores.tolist()
    np.testing.assert_allclose(
        boxes(shown) / 10, expected.pred_boxes.tensor.numpy(), rtol=0, atol=1e-4
    )


def test_moving_the_threshold_does_not_ask_the_network(viewer, photo, monkeypatch):
    handlers = Handlers(viewer)
    seen, picture, line, *_ = handlers.look(str(photo), LEAST_SCORE)
    monkeypatch.setattr(Predictor, "infer", None)
    fewer, fewer_line = handlers.draw(seen, 1)
    assert (picture != seen.picture).any() and (fewer == seen.picture).all()
    assert fewer_line == f"no instances; {len(seen.annotations)} score less"
    assert line.count("×") == len({one["category_id"] for one in seen.annotations})
    assert handlers.draw(seen, LEAST_SCORE)[1] == line


def test_attention_is_that_of_the_clicked_place(viewer, photo, monkeypatch):
    """The click is scaled to the network's input; the picture is not empty."""
    handlers = Handlers(viewer)
    seen, *_ = handlers.look(str(photo), 0.5)
    asked = []

    def watched(backbone, images, block, pixel):
        asked.append((tuple(images.shape[2:]), block, pixel))
        return attention_of_pixel(backbone, images, block, pixel)

    monkeypatch.setattr("mvitv2_det.visualize.attention_maps.attention_of_pixel", watched)
    height, width = seen.pixels.shape[1:]
    line, picture = handlers.attend(seen, (699, 399), 0)
    assert line == "query at y 39, x 69"
    assert asked == [((height, width), 0, (height - 1, width - 1))]
    assert picture.width > 300 and len(np.unique(picture.convert("L"))) > 50
    for nothing in (handlers.attend(seen, None, 0), handlers.attend(None, (0, 0), 0)):
        assert nothing == ("Click a place of the picture to see what it attends to.", None)


def test_blocks_are_named(viewer):
    assert len(viewer.blocks) == 4
    assert "global" in viewer.blocks[viewer.default_block]


def test_what_cannot_be_shown_is_one_line_without_its_folder(viewer, photo, monkeypatch, capsys):
    handlers = Handlers(viewer)
    broken = photo.with_name("broken.jpg")
    broken.write_bytes(photo.read_bytes()[:200])
    outputs = handlers.look(str(broken), 0.5)
    assert outputs[:2] == (None, None)
    assert outputs[2].startswith("cannot read image broken.jpg: ")
    assert str(photo.parent) not in outputs[2] and "\n" not in outputs[2]
    monkeypatch.setattr(viewer_module, "MOST_MEGAPIXELS", 0.001)
    assert "70×40 pixels" in handlers.look(str(photo), 0.5)[2]
    monkeypatch.undo()

    def fails(self, inputs):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Predictor, "infer", fails)
    line = handlers.look(str(photo), 0.5)[2]
    assert line == "photo.png failed: the terminal that serves this page says how"
    assert "out of luck" in capsys.readouterr().err  # Traceback for whoever serves
    assert handlers.look(None, 0.5)[0] is None


def test_large_images_are_shown_smaller(viewer, tmp_path, monkeypatch):
    monkeypatch.setattr(viewer_module, "MOST_SHOWN", 160)
    Image.new("RGB", (480, 30)).save(tmp_path / "long.png")
    Image.new("L", (320, 160)).save(tmp_path / "large.png")
    assert viewer.look(tmp_path / "large.png").picture.shape == (80, 160, 3)
    assert viewer.look(tmp_path / "long.png").picture.shape == (10, 160, 3)


def test_colours_in_another_order_are_turned_back(detector, viewer, photo, monkeypatch):
    """Attention is drawn over RGB, and computed of what the network sees."""
    changes = ["model.input_format=BGR", "dataloader.test.mapper.image_format=BGR"]
    predictor = Predictor(detector.config, detector.weights, device="cpu", overrides=changes)
    bgr_viewer, drawn = Viewer(predictor), []

    def draw(backbone, images, picture, pixel, file, **_):
        drawn.append((images, picture))
        Image.new("RGB", (8, 8)).save(file, "png")

    monkeypatch.setattr(viewer_module, "draw_attention_of_block", draw)
    for one in (viewer, bgr_viewer):
        one.attention(one.look(photo), (5, 5), 0)
    (images, picture), (bgr_images, bgr_picture) = drawn
    assert (picture == bgr_picture).all()
    mean, std = (getattr(predictor.model, name) for name in ("pixel_mean", "pixel_std"))
    pixels = bgr_images[0] * std + mean
    torch.testing.assert_close(pixels.flip(0), torch.tensor(picture.copy()).permute(2, 0, 1) * 1.0)
    assert not torch.equal(images, bgr_images)


def test_threshold_below_what_is_kept_is_refused(viewer):
    with pytest.raises(UserError, match=r"must be in \[0.05, 1\], got 0.01"):
        build_page(viewer, "model", 0.01)


def test_without_gradio_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert main(["serve", "--config", "demo", "--weights", "none.pth"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'mvitv2_det[serve]'" in line
