"""MViT without windows against timm's ``mvitv2_*`` classification networks on the same weights.

timm's are the networks of ``facebookresearch/mvit``: every block is global, K/V strides are not
doubled, and the large one doubles its channels in the MLPs.
"""

import dataclasses
import re
from functools import partial

import pytest
import timm
import torch
from models import narrow, randomize, relative_error
from timm.models.mvitv2 import MultiScaleVit, model_cfgs
from torch import Tensor, nn

from mvitv2_det import VARIANTS, MViT

TIMM_NAMES = {"T": "mvitv2_tiny", "S": "mvitv2_small", "B": "mvitv2_base", "L": "mvitv2_large"}
IMAGE_SIZE = 224
TOLERANCE = 1e-4


def our_name(name: str, depths: tuple[int, ...]) -> str | None:
    """The name of one of timm's parameters here, or None for the classifier, which is not here.

    timm numbers blocks within their stage, and has one norm, after the last stage.
    """
    if name.startswith("head."):
        return None
    name = re.sub(r"^norm\.", "scale5_norm.", name)
    name = re.sub(r"shortcut_proj_(attn|mlp)", "proj", name)
    block = re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name)
    if block is None:
        return name
    stage, index = map(int, block.groups())
    return f"blocks.{sum(depths[:stage]) + index}.{name[block.end() :]}"


def renamed(named: dict[str, Tensor], depths: tuple[int, ...]) -> dict[str, Tensor]:
    """The same under our names, without the classifier."""
    ours = {our_name(name, depths): tensor for name, tensor in named.items()}
    ours.pop(None, None)
    return ours


def our_arguments(variant: str) -> dict:
    """What makes MViT a classification network, and its size one of timm's."""
    return {
        "adaptive_window_size": 0,
        "global_kv_stride_factor": 1,
        "expand_in_attention": variant != "L",
        "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    }


def ours_of(arguments: dict) -> MViT:
    """Our network, whose maps come before any norm but that of scale5, as timm's do."""
    model = MViT(**arguments).eval()
    for name in ("scale2", "scale3", "scale4"):
        setattr(model, f"{name}_norm", nn.Identity())
    return model


def narrow_pair(variant: str, blocks: tuple[int, ...] | None = None) -> tuple[MultiScaleVit, MViT]:
    """timm's network and ours on the same weights: a size with 8 channels a head, and where
    ``blocks`` are given with so many in each stage."""
    size = dataclasses.replace(VARIANTS[variant], blocks=blocks or VARIANTS[variant].blocks)
    arguments = narrow(
        variant,
        depth=size.depth,
        last_block_indexes=size.last_block_indexes,
        **our_arguments(variant),
    )
    cfg = dataclasses.replace(
        model_cfgs[TIMM_NAMES[variant]], depths=size.blocks, embed_dim=arguments["embed_dim"]
    )
    reference = randomize(MultiScaleVit(cfg, num_classes=3)).eval()
    return reference, with_weights_of(reference, ours_of(arguments))


def with_weights_of(reference: MultiScaleVit, ours: MViT) -> MViT:
    ours.load_state_dict(renamed(reference.state_dict(), reference.depths))
    return ours


def timm_features(model: MultiScaleVit, images: Tensor) -> dict[str, Tensor]:
    """The map of every stage, the last one normalised, under Detectron2's names."""
    last, maps = model.forward_intermediates(images)
    last = last.transpose(1, 2).reshape(maps[-1].shape)
    return {f"scale{stage}": x for stage, x in enumerate([*maps[:-1], last], start=2)}


def assert_same_features(reference: MultiScaleVit, ours: MViT) -> None:
    images = torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        expected, actual = timm_features(reference, images), ours(images)
    assert list(actual) == list(expected) == ["scale2", "scale3", "scale4", "scale5"]
    for name, feature in expected.items():
        assert actual[name].shape == feature.shape
        assert relative_error(actual[name], feature) < TOLERANCE, name


@pytest.mark.parametrize("variant", TIMM_NAMES)
def test_features_of_every_stage(variant):
    assert_same_features(*narrow_pair(variant))


def test_features_of_a_published_size():
    reference = randomize(timm.create_model("mvitv2_tiny", pretrained=False)).eval()
    arguments = VARIANTS["T"].backbone_arguments() | our_arguments("T")
    assert_same_features(reference, with_weights_of(reference, ours_of(arguments)))


@pytest.mark.parametrize("variant", TIMM_NAMES)
def test_published_sizes_have_the_same_weights(variant):
    with torch.device("meta"):
        reference = timm.create_model(TIMM_NAMES[variant], pretrained=False)
        ours = ours_of(VARIANTS[variant].backbone_arguments() | our_arguments(variant))
    expected = renamed(reference.state_dict(), reference.depths)
    assert {name: weight.shape for name, weight in ours.state_dict().items()} == {
        name: weight.shape for name, weight in expected.items()
    }


@pytest.mark.parametrize("variant", ["T", "L"])
def test_gradients(variant):
    """Of every parameter, in both places where channels double."""
    reference, ours = (model.double() for model in narrow_pair(variant, blocks=(1, 2, 2, 1)))
    images = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.float64)
    for features in (timm_features(reference, images), ours(images)):
        sum(feature.square().mean() for feature in features.values()).backward()
    expected = renamed(
        {name: weight.grad for name, weight in reference.named_parameters()}, reference.depths
    )
    assert {name for name, _ in ours.named_parameters()} == set(expected)
    # Shifting all keys alike changes no attention: what is computed there is rounding.
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, weight in ours.named_parameters():
        if not name.endswith("norm_k.bias"):
            assert relative_error(weight.grad, expected[name]) < TOLERANCE, name
        else:
            assert (weight.grad - expected[name]).abs().max() < 1e-9 * largest, name
