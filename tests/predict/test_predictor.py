"""The Predictor against the model on the config's test loader, and its arguments."""

import copy
import gc
import json

import cv2
import numpy as np
import pytest
import torch
from conftest import dataset_overrides
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from models import relative_error
from omegaconf import OmegaConf
from PIL import Image
from small_detector import CASCADE, save_detector

from mvitv2_det import UserError, load_weights
from mvitv2_det.config import apply_overrides
from mvitv2_det.data import prepare_datasets
from mvitv2_det.detection.multi_scale_test import MultiScaleTest
from mvitv2_det.engine import build_model
from mvitv2_det.predict import Predictor

CONFIGS = ("mask_rcnn_mvitv2_t_3x", CASCADE)


@pytest.fixture(scope="module", params=CONFIGS)
def detector(request, tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("detector"), request.param)


@pytest.fixture(scope="module")
def mask_rcnn(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("mask_rcnn"))


@pytest.fixture
def photos(coco_folder):
    """Own data whose three images have two sizes, and one an Exif turn; their files."""
    content = json.loads((coco_folder / "val.json").read_text())
    noise = np.random.default_rng(1).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(coco_folder / "val" / "3.jpg", exif=exif)
    content["images"].append({"id": 3, "file_name": "3.jpg", "width": 40, "height": 70})
    (coco_folder / "val.json").write_text(json.dumps(content))
    return coco_folder


def same(found, expected):
    assert found.image_size == expected.image_size
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    for field in ("scores", "pred_classes", "pred_masks"):
        assert torch.equal(found.get(field), expected.get(field))


def test_equals_the_model_on_the_test_loader(detector, photos):
    """Exactly: the loader's batches are of one image, as those of one size are here."""
    cfg = copy.deepcopy(detector.cfg)
    apply_overrides(cfg, dataset_overrides(photos))
    prepare_datasets(cfg, training=False)
    model = build_model(cfg).eval()
    load_weights(model, detector.weights)
    predictor = Predictor(
        detector.config, detector.weights, overrides=dataset_overrides(photos), batch_size=1
    )
    with torch.no_grad():
        for (record,) in instantiate(cfg.dataloader.test):
            expected = model([record])[0]["instances"]
            assert len(expected) > 3
            same(predictor(record["file_name"]), expected)


def test_equals_multi_scale_testing_where_the_config_has_it(mask_rcnn, photos):
    cfg = copy.deepcopy(mask_rcnn.cfg)
    apply_overrides(cfg, dataset_overrides(photos))
    cfg.multi_scale_test = L(MultiScaleTest)(short_sides=[48, 64], max_side=100, flip=True)
    prepare_datasets(cfg, training=False)
    model = build_model(cfg).eval()
    load_weights(model, mask_rcnn.weights)
    model = MultiScaleTest(model, [48, 64], 100, flip=True).eval()
    predictor = Predictor(cfg, mask_rcnn.weights, batch_size=1)
    for (record,) in list(instantiate(cfg.dataloader.test))[1:]:
        same(predictor(record["file_name"]), model([record])[0]["instances"])


def test_a_batch_gives_what_its_images_give_alone(mask_rcnn, photos):
    """Of three sizes, so that a model that pads them to each other would find other things."""
    files = sorted((photos / "val").iterdir())[1:]
    arrays = [np.asarray(Image.open(files[0]))[:30, :60], np.full((50, 50), 9, np.uint8)]
    together = Predictor(mask_rcnn.config, mask_rcnn.weights)([*files, *arrays])
    predictor = Predictor(mask_rcnn.config, mask_rcnn.weights, batch_size=1)
    assert len({found.image_size for found in together}) == 4
    for found, image in zip(together, [*files, *arrays], strict=True):
        same(found, predictor(image))


def test_weights_are_constant_as_long_as_the_predictor_lives(mask_rcnn):
    predictor = Predictor(mask_rcnn.config, mask_rcnn.weights)
    blocks = predictor.model.backbone.bottom_up.blocks
    predictor(np.zeros((48, 64, 3), np.uint8))
    assert all(block.kept is not None for block in blocks)
    copied = copy.deepcopy(predictor)
    assert all(block.kept is None for block in copied.model.backbone.bottom_up.blocks)
    del predictor
    gc.collect()
    assert all(block.kept is None for block in blocks)


def test_images_of_one_size_share_a_forward_pass(mask_rcnn):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(5)]
    predictor = Predictor(mask_rcnn.config, mask_rcnn.weights, batch_size=3)
    sizes = []
    predictor.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    together = predictor(images)
    assert sizes == [3, 2]
    for found, image in zip(together, images, strict=True):
        alone = predictor(image)
        # float32, boxes of up to 64 pixels: other batch, other order of sums
        assert relative_error(found.pred_boxes.tensor, alone.pred_boxes.tensor) < 1e-5
        assert torch.equal(found.pred_classes, alone.pred_classes)


def test_channel_order(mask_rcnn, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    predictor = Predictor(mask_rcnn.config, mask_rcnn.weights)
    expected = predictor(tmp_path / "a.png")
    same(predictor(pixels), expected)
    assert predictor(pixels[:, :, ::-1]).scores.tolist() != expected.scores.tolist()
    of_opencv = Predictor(mask_rcnn.config, mask_rcnn.weights, channel_order="BGR")
    same(of_opencv(cv2.imread(str(tmp_path / "a.png"))), expected)
    # A model that takes BGR is given it, whichever way the image came.
    overrides = ["dataloader.train.mapper.image_format=BGR"]
    takes_bgr = Predictor(mask_rcnn.config, mask_rcnn.weights, overrides=overrides)
    same(takes_bgr(pixels[:, :, ::-1]), expected)


def test_score_threshold_is_the_box_heads(detector):
    """Standard or Cascade; also where it is lower than the config's own."""
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    found = Predictor(detector.config, detector.weights)(image)
    middle = found.scores[len(found) // 2].item()
    high = Predictor(detector.config, detector.weights, score_threshold=middle)
    same(high(image), found[found.scores > middle])
    overridden = copy.deepcopy(detector.cfg)
    heads = overridden.model.roi_heads
    for head in heads.get("box_predictors") or [heads.box_predictor]:
        head.test_score_thresh = 1.0
    assert len(Predictor(overridden, detector.weights)(image)) == 0
    same(Predictor(overridden, detector.weights, score_threshold=middle)(image), high(image))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(mask_rcnn, precision):
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    exact = Predictor(mask_rcnn.config, mask_rcnn.weights)(image)
    half = Predictor(mask_rcnn.config, mask_rcnn.weights, precision=precision)(image)
    assert half.scores.dtype == half.pred_boxes.tensor.dtype == torch.float32
    assert not torch.equal(half.scores[:1], exact.scores[:1])
    # bfloat16 has 8 bits: 2^-8 a rounding, and several of them
    assert half.scores[0].item() == pytest.approx(exact.scores[0].item(), rel=0.05)


def test_nothing_found(mask_rcnn):
    predictor = Predictor(mask_rcnn.config, mask_rcnn.weights, score_threshold=1.0)
    found = predictor(np.zeros((48, 64, 3), np.uint8))
    assert len(found) == 0 and found.pred_masks.shape == (0, 48, 64)
    assert predictor([]) == []


def test_classes(mask_rcnn, coco_folder):
    def classes(*overrides):
        predictor = Predictor(mask_rcnn.config, mask_rcnn.weights, overrides=overrides)
        return predictor.classes.names, predictor.classes.ids

    own = dataset_overrides(coco_folder)
    assert classes() == (["class 0", "class 1"], [0, 1])  # not two of COCO's
    assert classes(*own, "model.roi_heads.num_classes=80") == (["box", "plate"], [3, 7])
    (coco_folder / "val.json").unlink()
    assert classes(*own) == (["class 0", "class 1"], [0, 1])
    stored = "+dataset.categories={5: saucer, 2: cup}"
    assert classes(*own, stored) == (["cup", "saucer"], [2, 5])


def test_classes_of_coco(tmp_path):
    detector = save_detector(tmp_path, CONFIGS[0], "model.roi_heads.num_classes=80")
    classes = Predictor(detector.config, detector.weights).classes
    assert (classes.names[0], classes.ids[0]) == ("person", 1)
    assert (classes.names[79], classes.ids[79]) == ("toothbrush", 90)


def test_takes_a_config_and_leaves_it(mask_rcnn):
    before = OmegaConf.to_yaml(mask_rcnn.cfg)
    Predictor(mask_rcnn.cfg, mask_rcnn.weights, overrides=["model.roi_heads.num_classes=2"])
    assert OmegaConf.to_yaml(mask_rcnn.cfg) == before


def test_weights_of_something_else(mask_rcnn, tmp_path):
    state = torch.load(mask_rcnn.weights)["model"]
    backbone = {name: value for name, value in state.items() if name.startswith("backbone")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match=r"backbone\.pth are not those of .* \d+ of the tensors"):
        Predictor(mask_rcnn.config, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="know 2 classes, the config's model 5"):
        Predictor(mask_rcnn.config, mask_rcnn.weights, overrides=["model.roi_heads.num_classes=5"])
    deeper = {**state, "roi_heads.mask_head.mask_fcn3.weight": torch.zeros(8, 8, 3, 3)}
    torch.save({"model": deeper}, tmp_path / "deeper.pth")
    with pytest.raises(UserError, match="mask_fcn3"):
        Predictor(mask_rcnn.config, tmp_path / "deeper.pth")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"precision": "fp8"}, "one of fp32, fp16, bf16, got 'fp8'"),
        ({"score_threshold": 50}, r"in \[0, 1\], got 50"),
        ({"channel_order": "GBR"}, "RGB or BGR, got 'GBR'"),
        ({"batch_size": 0}, "1 or more, got 0"),
        ({"device": "tpu"}, "device 'tpu' cannot be used"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"overrides": ["model.roi_head.x=1"]}, "names no key"),
        ({"config": "mask_rcnn_mvitv2_x_3x"}, "there is no config"),
        ({"config": "none.yaml"}, "there is no config file"),
        ({"weights": "none.pth"}, "none.pth"),
    ],
)
def test_bad_arguments(arguments, words, mask_rcnn):
    arguments = {"config": mask_rcnn.config, "weights": mask_rcnn.weights} | arguments
    with pytest.raises(UserError, match=words):
        Predictor(**arguments)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((48, 64, 2), np.uint8), r"got \(48, 64, 2\)"),
        (np.zeros((3, 48, 64, 3), np.uint8), r"got \(3, 48, 64, 3\)"),
        (np.zeros((0, 64, 3), np.uint8), r"got \(0, 64, 3\)"),
        (np.zeros((48, 64, 3), np.float32), "got float32"),
        (np.zeros((1, 9000, 3), np.uint8), "cannot resize the image of 9000×1"),
        ("none.png", "there is no such file"),
    ],
)
def test_bad_images(image, words, mask_rcnn):
    with pytest.raises(UserError, match=words):
        Predictor(mask_rcnn.config, mask_rcnn.weights)(image)
