"""The plain transformer: against Detectron2's ViT, and every kind of attention on it."""

from functools import partial

import pytest
import torch
from detectron2.modeling import ViT as Detectron2ViT
from models import randomize, relative_error
from torch import nn

from mvitv2_det import ViT

NARROW = {
    "embed_dim": 24,
    "depth": 4,
    "num_heads": 3,
    "norm_layer": partial(nn.LayerNorm, eps=1e-6),
}


def reference(**options) -> nn.Module:
    """Detectron2's; its feature map has no norm."""
    return randomize(Detectron2ViT(img_size=224, out_feature="scale4", **NARROW, **options).eval())


def ours(weights: nn.Module, **options) -> ViT:
    model = ViT(**NARROW, **options).eval()
    model.scale4_norm = nn.Identity()
    model.load_state_dict(weights.state_dict())
    return model


@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
@pytest.mark.parametrize("use_rel_pos", [False, True])
def test_equals_detectron2(size, use_rel_pos):
    """Outputs and gradients, float32, within 1e-4 of the largest value."""
    expected_model = reference(use_rel_pos=use_rel_pos)
    model = ours(expected_model, use_rel_pos=use_rel_pos)
    images = torch.randn(2, 3, *size)
    expected, actual = expected_model(images)["scale4"], model(images)["scale4"]
    assert relative_error(actual, expected) < 1e-4
    expected.square().mean().backward()
    actual.square().mean().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, weight in expected_model.named_parameters():
        assert (gradients[name] - weight.grad).abs().max() < 1e-4 * largest, name


def test_windows_equal_detectron2s_where_none_is_padded():
    """Its padding comes before the projection, whose bias padded keys then have."""
    options = {"use_rel_pos": True, "window_size": 7}
    expected_model = reference(**options, window_block_indexes=(0, 2))
    model = ours(expected_model, **options, global_block_indexes=(1, 3))
    images = torch.randn(1, 3, 224, 224)
    assert relative_error(model(images)["scale4"], expected_model(images)["scale4"]) < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"window_size": 4, "window_layout": "fixed"},
        {"window_size": 4, "window_layout": "shifted"},
        {"window_size": 4},
        {"pooling": True, "kv_stride": 2},
        {"pooling": True, "kv_stride": 2, "window_size": 4},
        {"pooling": True, "kv_stride": 2, "window_size": 4, "window_layout": "shifted"},
    ],
    ids=str,
)
def test_kinds_of_attention_train(options):
    model = randomize(ViT(**NARROW, **options, use_rel_pos=True))
    features = model(torch.randn(2, 3, 80, 112))
    assert features["scale4"].shape == (2, 24, 5, 7)
    assert model.output_shape()["scale4"].stride == 16
    features["scale4"].square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name


def test_activation_checkpointing_changes_nothing():
    images = torch.randn(1, 3, 64, 64)
    model = randomize(ViT(**NARROW)).train()
    plain = model(images)["scale4"]
    model.use_act_checkpoint = True
    assert torch.equal(model(images)["scale4"], plain)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patch_size": 12}, "power of 2, got 12"),
        ({"img_size": 8}, "img_size must be at least patch_size = 16, got 8"),
    ],
    ids=str,
)
def test_wrong_sizes_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ViT(**options)
