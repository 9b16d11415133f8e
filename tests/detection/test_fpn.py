"""The FPN adapter against Detectron2's FPN."""

import pytest
import torch
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from detectron2.structures import ImageList
from models import TINY, randomize

from mvitv2_det import MViT, MViTFPN

FEATURES = ["scale2", "scale3", "scale4", "scale5"]


def fpn(cls=MViTFPN, **options):
    model = cls(MViT(**TINY), FEATURES, 8, top_block=LastLevelMaxPool(), **options)
    return randomize(model).eval()


def test_equals_detectron2_on_padded_images():
    ours, reference = fpn(), fpn(FPN)
    assert list(ours.state_dict()) == list(reference.state_dict())
    ours.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 64, 96)
    actual, expected = ours(images), reference(images)
    assert list(actual) == ["p2", "p3", "p4", "p5", "p6"]
    for name, feature in expected.items():
        assert torch.equal(actual[name], feature)


@pytest.mark.parametrize("size", [(33, 50), (64, 65), (127, 32)])
def test_any_size_is_padded_to_the_stride(size):
    """As if the image had been padded with zeros below and to the right before."""
    model = fpn()
    images = torch.randn(1, 3, *size)
    height, width = (-(-side // 32) * 32 for side in size)
    padded = torch.zeros(1, 3, height, width)
    padded[..., : size[0], : size[1]] = images
    actual, expected = model(images), model(padded)
    for level, name in enumerate(("p2", "p3", "p4", "p5"), start=2):
        assert torch.equal(actual[name], expected[name])
        assert actual[name].shape[-2:] == (height >> level, width >> level)


def test_square_pad_pads_small_images_and_keeps_large_ones_whole():
    model = fpn(square_pad=64)
    assert model(torch.randn(1, 3, 40, 30))["p2"].shape[-2:] == (16, 16)
    assert model(torch.randn(1, 3, 40, 100))["p2"].shape[-2:] == (16, 32)
    # Detectron2 asks the backbone how to pad its batches: a square smaller than the image would
    # have it cut off.
    image = torch.ones(3, 40, 100)
    batch = ImageList.from_tensors(
        [image], model.size_divisibility, padding_constraints=model.padding_constraints
    )
    assert batch.tensor.sum() == image.sum()
