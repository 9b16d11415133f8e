import pytest
import torch
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from models import TINY

from mvitv2_det import MViT, MViTFPN, ResampledPyramid, ViT

SMALL = {"embed_dim": 8, "depth": 1, "num_heads": 1}


@pytest.mark.parametrize("norm", ["", "LN", "BN"])
@pytest.mark.parametrize("size", [(64, 96), (48, 80)])
def test_shapes_and_strides(norm, size):
    pyramid = ResampledPyramid(ViT(**SMALL), norm).eval()
    images = torch.randn(2, 3, *size)
    features = pyramid(images)
    shapes = pyramid.output_shape()
    assert list(features) == list(shapes) == ["scale2", "scale3", "scale4", "scale5"]
    for name, shape in shapes.items():
        sides = [-(-side // shape.stride) for side in size]
        assert features[name].shape == (2, shape.channels, *sides)


def test_levels_are_made_of_the_one_map():
    pyramid = ResampledPyramid(ViT(**SMALL), "").eval()
    images = torch.randn(1, 3, 64, 64)
    features, x = pyramid(images), pyramid.bottom_up(images)["scale4"]
    assert torch.equal(features["scale4"], x)
    assert torch.equal(features["scale5"], torch.nn.functional.max_pool2d(x, 2))
    # A transposed convolution of stride 2 writes each input pixel to its own 2 × 2 pixels.
    weight, bias = pyramid.scale3.weight, pyramid.scale3.bias
    blocks = torch.einsum("bchw,cdij->bdhiwj", x, weight).reshape(1, 8, 8, 8)
    torch.testing.assert_close(features["scale3"], blocks + bias[:, None, None])


def test_under_an_fpn():
    pyramid = ResampledPyramid(ViT(**SMALL), "BN")
    fpn = MViTFPN(pyramid, list(pyramid.output_shape()), 16, top_block=LastLevelMaxPool())
    features = fpn(torch.randn(2, 3, 50, 70))
    assert {name: tuple(f.shape[2:]) for name, f in features.items()} == {
        "p2": (16, 24),
        "p3": (8, 12),
        "p4": (4, 6),
        "p5": (2, 3),
        "p6": (1, 2),
    }


def test_other_backbones_are_refused():
    with pytest.raises(ValueError, match="one feature map, got 4"):
        ResampledPyramid(MViT(**TINY))
    with pytest.raises(ValueError, match="stride 16, got 32"):
        ResampledPyramid(ViT(**SMALL, patch_size=32))
