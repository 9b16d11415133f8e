"""Classifiers of images against timm's, at full width: logits and gradients."""

from dataclasses import replace

import pytest
import timm
import torch
from recognition.networks import assert_equal, copy_weights, renamed
from timm.models.mvitv2 import MultiScaleVit, model_cfgs

from mvitv2_det import VARIANTS, Recognizer
from mvitv2_det.weights.key_maps import TIMM

SIZE = 96  # of the images: maps of 24² to 3² tokens


@pytest.mark.parametrize(
    ("name", "variant", "class_token"),
    [
        ("mvitv2_tiny", "T", False),
        ("mvitv2_small", "S", False),
        ("mvitv2_small_cls", "S", True),
        pytest.param("mvitv2_base", "B", False, marks=pytest.mark.long),
    ],
)
def test_in_float32(name, variant, class_token):
    """At full depth, to 1e-4."""
    theirs = timm.create_model(name, img_size=SIZE, num_classes=10)
    ours = Recognizer.image(variant, num_classes=10, class_token=class_token, image_size=SIZE)
    check(ours, theirs, torch.float32, 1e-4)


@pytest.mark.parametrize(
    ("name", "variant", "class_token"),
    [
        ("mvitv2_tiny", "T", False),
        ("mvitv2_small_cls", "S", True),
        pytest.param("mvitv2_large", "L", False, marks=pytest.mark.long),
        pytest.param("mvitv2_large_cls", "L", True, marks=pytest.mark.long),
    ],
)
def test_in_float64(name, variant, class_token):
    """At a depth that has every kind of block, to 1e-9. L widens in the MLPs without a token."""
    depths = (1, 2, 2, 2)
    cfg = replace(model_cfgs[name], depths=depths)
    theirs = MultiScaleVit(cfg, img_size=(SIZE, SIZE), num_classes=10)
    ours = Recognizer.image(
        replace(VARIANTS[variant], blocks=depths),
        num_classes=10,
        class_token=class_token,
        image_size=SIZE,
        expand_in_attention=class_token or variant != "L",
    )
    check(ours, theirs, torch.float64, 1e-9)


def check(ours, theirs, dtype, tolerance):
    copy_weights(ours.to(dtype), theirs.to(dtype), TIMM)
    assert_equal(ours, theirs, TIMM, torch.randn(2, 3, SIZE, SIZE, dtype=dtype), tolerance)


@pytest.mark.usefixtures("without_memory")
@pytest.mark.parametrize(
    ("name", "variant", "class_token"),
    [
        ("mvitv2_base_cls", "B", True),
        ("mvitv2_large", "L", False),
        ("mvitv2_large_cls", "L", True),
        ("mvitv2_huge_cls", "H", True),
    ],
)
def test_the_large_ones_have_the_same_tensors(name, variant, class_token):
    """At full size: names and shapes."""
    theirs = timm.create_model(name, pretrained=False, num_classes=19168)
    ours = Recognizer.image(variant, num_classes=19168, class_token=class_token)
    shapes = {name: value.shape for name, value in renamed(theirs.state_dict(), TIMM).items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes
