"""What a checkpoint says of its recogniser: written, read back, refused, and built."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from mvitv2_det import UserError
from mvitv2_det.recognition.description import ClipInput, Description, Input

SIZES = {"embed_dim": 8, "blocks": [1, 1, 1, 1], "num_heads": 1, "drop_path_rate": 0.1}
DESCRIPTION = Description(
    "image",
    {"variant": SIZES, "class_token": True, "image_size": 64, "head_dropout": 0.5},
    ("ant", "bee"),
    Input(size=64, mode="squash", crop=1.0, mean=(0.45, 0.45, 0.45)),
)


def test_a_checkpoint_keeps_it(tmp_path):
    torch.save({"model": {}, "recognizer": DESCRIPTION.to_dict()}, tmp_path / "model.pth")
    content = torch.load(tmp_path / "model.pth", weights_only=True)
    assert Description.from_dict(content["recognizer"]) == DESCRIPTION


def test_builds_the_network():
    model = DESCRIPTION.build().eval()
    assert model.cls_token.shape == (1, 1, 8)
    assert model.head.projection.weight.shape == (2, 64)
    assert model.head.dropout.p == 0.5
    # The variant's own drop path rate, which only the last block has in full.
    assert model.blocks[-1].drop_path.drop_prob == pytest.approx(0.1)


def test_builds_a_network_of_clips():
    clips = Description("video", {"variant": SIZES, "frames": 4, "image_size": 64}, ("run",))
    assert clips.build().axes == 3


def test_a_checkpoint_of_clips_keeps_it():
    input = ClipInput(size=64, frames=8, rate=2, clips=4, crops=3)
    arguments = {"variant": SIZES, "frames": 8, "image_size": 64}
    clips = Description("video", arguments, ("run", "walk"), input)
    assert Description.from_dict(clips.to_dict()) == clips
    assert isinstance(Description("video", arguments, ("run",)).input, ClipInput)
    with pytest.raises(UserError, match="input must be an input of constructor image"):
        Description("image", arguments, ("run",), input)


def test_a_variant_by_name():
    model = Description("image", {"variant": "T"}, ("a", "b", "c")).build()
    assert len(model.blocks) == 10 and model.num_classes == 3


@pytest.mark.parametrize(
    ("mode", "crop", "timms"), [("centre", 0.875, "center"), ("squash", 1.0, "squash")]
)
def test_preprocesses_as_timm(mode, crop, timms):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    ours = Input(size=64, crop=crop, mode=mode).transform()(image)
    theirs = create_transform(
        64, is_training=False, crop_mode=timms, crop_pct=crop, interpolation="bicubic"
    )
    assert ours.shape == (3, 64, 64)
    assert torch.equal(ours, theirs(image))


WRONG = {
    "no mapping": (lambda d: [], "must be a mapping, got a list"),
    "missing": (lambda d: d.pop("classes") and d, "has no classes"),
    "unknown": (lambda d: d | {"heads": 1}, "has heads, which is not known"),
    "constructor": (
        lambda d: d | {"constructor": "__init__"},
        "or actions, got __init__",
    ),
    "classes": (lambda d: d | {"classes": "ant"}, "a list of names"),
    "class name": (lambda d: d | {"classes": ["ant", 1]}, "a list of names"),
    "count": (lambda d: d | {"classes": ["ant"]}, "as many names as the 2 outputs, got 1"),
    "no arguments": (lambda d: d | {"arguments": 3}, "arguments must be a mapping"),
    "mode": (lambda d: d | {"input": {"mode": "middle"}}, "centre or squash, got middle"),
    "size": (lambda d: d | {"input": {"size": 0}}, "a number of pixels"),
    "crop": (lambda d: d | {"input": {"crop": 1.5}}, "a share in"),
    "std": (lambda d: d | {"input": {"std": [1, 0, 1]}}, "three positive numbers"),
    "mean": (lambda d: d | {"input": {"mean": [1, 0]}}, "three numbers"),
    "interpolation": (lambda d: d | {"input": {"interpolation": "best"}}, "got best"),
    "input": (lambda d: d | {"input": {"sides": 3}}, "recognizer.input.* has sides"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name):
    change, message = WRONG[name]
    with pytest.raises(UserError, match=message) as error:
        Description.from_dict(change(DESCRIPTION.to_dict()))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "XL"}, "variant must be one of T, S, B, L, H"),
        ({"variant": {"embed_dim": 8}}, "cannot be made"),
        ({"variant": "T", "windows": 3}, "windows"),
        ({"variant": "T", "image_size": 16}, "at least 8 patch strides"),
    ],
)
def test_a_network_that_cannot_be_made(arguments, message):
    with pytest.raises(UserError, match=message):
        Description("image", arguments, ("a",)).build()


def test_no_value_that_a_checkpoint_cannot_hold():
    with pytest.raises(UserError, match=r"arguments.norm_layer must be a plain value"):
        Description("image", {"norm_layer": torch.nn.LayerNorm}, ("a",))
