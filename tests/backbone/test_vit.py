"""The plain transformer: against Detectron2's ViT, and every kind of attention on it."""

from functools import partial

import pytest
import torch
from detectron2.modeling import SimpleFeaturePyramid
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


WINDOWS = {"use_rel_pos": True, "window_size": 7}


def pair(dtype: torch.dtype, windowed: tuple[int, ...] = (), **options) -> tuple[nn.Module, ViT]:
    """Detectron2's and ours with the same random weights."""
    expected = Detectron2ViT(
        img_size=224, out_feature="scale4", window_block_indexes=windowed, **NARROW, **options
    )
    if windowed:
        options["global_block_indexes"] = tuple({*range(NARROW["depth"])} - {*windowed})
    actual = ViT(**NARROW, **options, output_norm=False)
    actual.load_state_dict(randomize(expected).state_dict())
    return expected.to(dtype), actual.to(dtype)


def assert_same(expected_model: nn.Module, model: nn.Module, size, tolerance: float) -> None:
    """Outputs and gradients, within a part of the largest value."""
    dtype = next(model.parameters()).dtype
    images = torch.randn(2, 3, *size, dtype=dtype)
    found = []
    for network in (expected_model, model):
        features = list(network(images).values())
        sum(feature.square().mean() for feature in features).backward()
        found.append((features, {name: w.grad for name, w in network.named_parameters()}))
    (expected, expected_gradients), (actual, gradients) = found
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) < tolerance
    assert gradients.keys() == expected_gradients.keys()
    largest = max(gradient.abs().max() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        assert (gradients[name] - gradient).abs().max() < tolerance * largest, name


@pytest.mark.parametrize("size", [(224, 224), (96, 160)])
@pytest.mark.parametrize("use_rel_pos", [False, True])
def test_equals_detectron2(size, use_rel_pos):
    assert_same(*pair(torch.float32, use_rel_pos=use_rel_pos), size, tolerance=1e-4)


# Whole windows; windows that reach over the map along one axis, along both; one that covers it.
SIZES = [(224, 224), (224, 240), (256, 304), (48, 80), (16, 16)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=str
)
def test_windows_equal_detectron2s(size, dtype, tolerance):
    """It pads before the projection, whose bias padded keys and values then are."""
    expected, actual = pair(dtype, windowed=(0, 2), **WINDOWS)
    assert_same(expected, actual, size, tolerance)
    with torch.no_grad():  # on the CPU, computed in another way
        images = torch.randn(1, 3, *size, dtype=dtype)
        for one, other in zip(actual(images).values(), expected(images).values(), strict=True):
            assert relative_error(one, other) < tolerance


def test_a_pyramid_of_vitdet_takes_either():
    """Detectron2's pyramid on ours: the same maps, and weights that load strictly both ways."""
    pyramids = [
        SimpleFeaturePyramid(net, "scale4", 16, (4.0, 2.0, 1.0, 0.5), square_pad=128)
        for net in pair(torch.float64, windowed=(0, 1, 3), **WINDOWS)
    ]
    expected, actual = (randomize(pyramid.double(), seed=1) for pyramid in pyramids)
    assert list(actual.state_dict()) == list(expected.state_dict())
    expected.load_state_dict(actual.state_dict())
    assert actual.padding_constraints == expected.padding_constraints
    assert_same(expected, actual, (128, 96), tolerance=1e-9)


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
