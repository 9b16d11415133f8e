"""Classes of images: against timm's network and transform, from files, arrays and Pillow's."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from classifiers import CLASSES, describe, save_classifier
from models import randomize
from PIL import Image
from timm.data import ImageNetInfo, create_transform
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

from mvitv2_det import Classifier, UserError

SMALL = MultiScaleVitCfg(embed_dim=16, depths=(1, 1, 1, 1), num_heads=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    files = [folder / f"{index}.png" for index in range(3)]
    for file, size in zip(files, ((90, 120, 3), (130, 70, 3), (64, 64, 3)), strict=True):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize(size[1::-1], Image.Resampling.BICUBIC).save(file)
    return files


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("classifier") / "model_final.pth")


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize(("squash", "crop"), [(False, 0.875), (True, 1.0)])
def test_released_weights_give_what_timm_gives(photos, tmp_path, class_token, squash, crop):
    """float32, 1e-6 of probabilities; the network is found from the shapes alone."""
    cfg = dataclasses.replace(SMALL, use_cls_token=class_token)
    network = randomize(MultiScaleVit(cfg, img_size=(96, 96), num_classes=1000)).eval()
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    transform = create_transform(
        96, crop_pct=crop, crop_mode="squash" if squash else "center", interpolation="bicubic"
    )
    images = [Image.open(file).convert("RGB") for file in photos]
    with torch.no_grad():
        expected = network(torch.stack([transform(image) for image in images])).softmax(dim=1)
    classifier = Classifier(tmp_path / "timm.pth", device="cpu", squash=squash, batch_size=2, top=2)
    actual = classifier.probabilities(photos)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)
    found = classifier(photos)
    assert [one[0].number for one in found] == expected.argmax(dim=1).tolist()
    for one, row in zip(found, expected, strict=True):
        values, numbers = row.topk(2)
        assert [likely.number for likely in one] == numbers.tolist()
        assert [likely.probability for likely in one] == pytest.approx(values.tolist(), abs=1e-6)
        best = ImageNetInfo().index_to_description(numbers[0].item())
        assert one[0].name == best


def test_released_tiny_is_recognised():
    """Full width, from timm's module itself; expanded channels and K/V strides as they are."""
    torch.manual_seed(0)
    network = randomize(timm.create_model("mvitv2_tiny")).eval()
    classifier = Classifier(network, device="cpu")
    assert classifier.description.input.size == 224
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(classifier.model(images), network(images), atol=1e-3, rtol=1e-4)


def test_imagenet_1k_of_imagenet_21k():
    cfg = dataclasses.replace(SMALL, use_cls_token=True)
    network = randomize(MultiScaleVit(cfg, img_size=(64, 64), num_classes=1205)).eval()
    classifier = Classifier(network, num_classes=1000, device="cpu")
    assert classifier.description.classes[0] == "tench, Tinca tinca"
    assert torch.equal(classifier.model.head.projection.weight, network.head.fc.weight[:1000])
    assert Classifier(network, device="cpu").description.classes[-1] == "class 1204"


def test_a_checkpoint_of_training_describes_itself(photos, weights):
    classifier = Classifier(weights, device="cpu")
    content = torch.load(weights, weights_only=True)
    network = describe().build().eval()
    network.load_state_dict(content["model"])
    transform = describe().input.transform()
    with torch.no_grad():
        expected = network(transform(Image.open(photos[0]))[None]).softmax(dim=1)[0]
    found = classifier(photos[0])
    order = expected.argsort(descending=True).tolist()
    assert [likely.name for likely in found] == [CLASSES[index] for index in order]
    assert [one.probability for one in found] == pytest.approx(expected[order].tolist(), abs=1e-6)


def test_kinds_of_images_agree(photos, weights):
    classifier = Classifier(weights, device="cpu", channel_order="BGR")
    pixels = np.asarray(Image.open(photos[1]))
    kinds = [photos[1], str(photos[1]), Image.open(photos[1]), pixels[:, :, ::-1]]
    found = classifier(kinds)
    assert len(found) == 4 and all(one == found[0] for one in found)
    alone = classifier(kinds[2])
    assert [one.name for one in alone] == [one.name for one in found[0]]
    # Rounding depends on how many images go through the network together.
    probabilities = [one.probability for one in found[0]]
    assert [one.probability for one in alone] == pytest.approx(probabilities, abs=1e-6)


def test_a_grey_image_and_one_with_exif(weights):
    classifier = Classifier(weights, device="cpu")
    grey = Image.fromarray(np.arange(0, 250, dtype=np.uint8).reshape(25, 10))
    assert classifier(grey) == classifier(grey.convert("RGB"))
    turned = grey.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned by 90° clockwise
    assert classifier(turned) == classifier(grey) != classifier(np.asarray(turned))


def test_own_names_size_and_precision(photos, weights):
    names = ["x", "y", "z"]
    classifier = Classifier(
        weights, classes=names, image_size=96, precision="bf16", top=9, device="cpu"
    )
    assert classifier.prepare(photos[0]).shape == (3, 96, 96)
    found = classifier(photos[0])
    assert sorted(likely.name for likely in found) == names
    assert sum(likely.probability for likely in found) == pytest.approx(1, abs=1e-5)


def _clips(content):
    content["recognizer"]["constructor"] = "video"


def _mangled(content):
    content["recognizer"]["classes"] = ["ant"]


def _incomplete(content):
    del content["model"]["blocks.1.attn.norm_q.weight"]


def _headless(content):
    del content["recognizer"]
    content["model"] = {k: v for k, v in content["model"].items() if not k.startswith("head")}


WRONG = {
    "clips": (_clips, {}, "is of clips: expected one of images"),
    "mangled": (_mangled, {}, "model.pth.*as many names as the 3 outputs, got 1"),
    "incomplete": (_incomplete, {}, "norm_q"),
    "headless": (_headless, {}, "has no classifier of an MViT"),
    "own classes": (dict, {"num_classes": 2}, "the first 2 cannot be taken"),
    "names": (dict, {"classes": ["a"]}, "as many names as the 3 outputs, got 1"),
    "too many": (lambda c: c.pop("recognizer"), {"num_classes": 9}, r"in 1 \.\. 3, got 9"),
    "top": (dict, {"top": 0}, "top must be 1 or more"),
    "size": (dict, {"image_size": 0}, "a number of pixels, got 0"),
    "precision": (dict, {"precision": "int8"}, "fp32, fp16, bf16"),
    "device": (dict, {"device": "tpu7"}, "device 'tpu7' cannot be used"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(weights, tmp_path, case):
    change, options, message = WRONG[case]
    content = torch.load(weights, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(UserError, match=message) as error:
        Classifier(tmp_path / "model.pth", **{"device": "cpu"} | options)
    assert "\n" not in str(error.value)
