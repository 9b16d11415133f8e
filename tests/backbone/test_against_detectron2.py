"""MViT against ``detectron2.modeling.MViT`` on the same random weights."""

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import MViT as ReferenceMViT
from marks import long_but
from models import SHAPES, narrow, randomize, relative_error

from mvitv2_det import VARIANTS, MViT

SIZES = [(224, 224), (33, 50)]
DETECTION_SIZES = [(750, 1001), (800, 1088)]
# The larger networks run the same code on more channels; S and B run always.
VARIANTS_OF_SHAPES = long_but(set(SHAPES) - set("LH"), SHAPES)
# The first block of a stage strides, the last attends globally, and those between are all alike.
MOST_BLOCKS = 3
TOLERANCE = 1e-4


def pair(arguments: dict) -> tuple[torch.nn.Module, MViT]:
    """The reference and ours with the same weights."""
    reference = randomize(ReferenceMViT(**arguments)).eval()
    ours = MViT(**arguments).eval()
    ours.load_state_dict(reference.state_dict())
    return reference, ours


def assert_same_outputs(reference, ours, size):
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected, actual = reference(images), ours(images)
    assert list(actual) == list(expected)
    for name, feature in expected.items():
        assert actual[name].shape == feature.shape
        assert relative_error(actual[name], feature) < TOLERANCE, name


def assert_same_gradients(reference, ours, size, batch=2):
    images = torch.randn(batch, 3, *size)
    for model in (reference, ours):
        sum(feature.square().mean() for feature in model(images).values()).backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    # Shifting all keys alike changes no attention, so the exact gradient of norm_k.bias is zero
    # where no key is padding, and what is computed there is rounding.
    rounding = 1e-6 * max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        difference = (parameter.grad - expected[name]).abs().max()
        assert difference < TOLERANCE * expected[name].abs().max() + rounding, name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS_OF_SHAPES)
def test_outputs(variant, size):
    assert_same_outputs(*pair(narrow(variant)), size)


@pytest.mark.parametrize(
    ("variant", "size"),
    [
        *(("T", size) for size in DETECTION_SIZES),
        ("B", DETECTION_SIZES[0]),
        pytest.param("L", DETECTION_SIZES[1], marks=pytest.mark.long),
        pytest.param("H", DETECTION_SIZES[0], marks=pytest.mark.long),
    ],
)
def test_outputs_of_detection_sizes(variant, size):
    """Every kind of block with every number of heads; S is T but for blocks that are all alike.

    Of T, at full depth, the gradients follow below.
    """
    blocks = tuple(min(number, MOST_BLOCKS) for number in VARIANTS[variant].blocks)
    short = replace(VARIANTS[variant], blocks=blocks).backbone_arguments()
    depth = {name: short[name] for name in ("depth", "last_block_indexes")}
    assert_same_outputs(*pair(narrow(variant, **depth)), size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS_OF_SHAPES)
def test_gradients(variant, size):
    assert_same_gradients(*pair(narrow(variant)), size)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_seeded_trainings_coincide(backend):
    """The same paths are dropped, and those kept are divided by the same rates."""
    arguments = narrow("T", depth=5, last_block_indexes=(0, 1, 3, 4), adaptive_window_size=8)
    arguments["drop_path_rate"] = 0.4
    reference = randomize(ReferenceMViT(**arguments)).double()
    ours = MViT(**arguments, attention_backend=backend).double()
    ours.load_state_dict(reference.state_dict())
    images = torch.randn(4, 3, 32, 48, dtype=torch.float64)
    features, gradients = [], []
    for model in (reference, ours):
        torch.manual_seed(7)
        features.append(model.train()(images))
        sum(feature.square().mean() for feature in features[-1].values()).backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    torch.testing.assert_close(*features, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    # Some path of each image was dropped: evaluation, which drops none, gives something else.
    with torch.no_grad():
        evaluated = ours.eval()(images)["scale5"]
    assert (evaluated - features[1]["scale5"]).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("size", long_but(DETECTION_SIZES[:1], DETECTION_SIZES))
def test_gradients_of_detection_sizes(size):
    assert_same_gradients(*pair(narrow("T")), size, batch=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_abs_pos": True},
        {"use_abs_pos": True, "pretrain_use_cls_token": False, "pretrain_img_size": 256},
        {"use_rel_pos": False},
        {"residual_pooling": False},
        {"qkv_bias": False},
        {"adaptive_window_size": 0},
        {"adaptive_window_size": 32, "adaptive_kv_stride": 8, "img_size": 320},
        {"qkv_pool_kernel": (5, 5), "mlp_ratio": 2.0},
        {"patch_kernel": (8, 8), "patch_stride": (8, 8), "patch_padding": (0, 0)},
        {"out_features": ("scale3", "scale5")},
        {"in_chans": 1},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_keywords_mean_the_same(changes):
    reference, ours = pair(narrow("T", **changes))
    assert list(ours.state_dict()) == list(reference.state_dict())
    images = torch.randn(2, changes.get("in_chans", 3), 200, 150)
    expected, actual = reference(images), ours(images)
    assert ours.output_shape() == reference.output_shape()
    for name, feature in expected.items():
        assert relative_error(actual[name], feature) < TOLERANCE, name


@pytest.mark.usefixtures("without_memory")
@pytest.mark.parametrize("variant", SHAPES)
def test_full_sizes_have_the_same_parameters(variant):
    arguments = VARIANTS[variant].backbone_arguments() | {"use_abs_pos": True}
    reference, ours = ReferenceMViT(**arguments), MViT(**arguments)
    shapes = [
        {name: tensor.shape for name, tensor in model.state_dict().items()}
        for model in (reference, ours)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.usefixtures("without_memory")
def test_default_arguments_are_the_same():
    reference, ours = ReferenceMViT(), MViT()
    assert ours.output_shape() == reference.output_shape()
    assert str(ours.blocks[0].norm1) == str(reference.blocks[0].norm1)


def test_tables_start_alike():
    for zero_init in (True, False):
        arguments = narrow("T", rel_pos_zero_init=zero_init)
        for model in (ReferenceMViT(**arguments), MViT(**arguments)):
            assert bool(model.blocks[0].attn.rel_pos_h.any()) is not zero_init
