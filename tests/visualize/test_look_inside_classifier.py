"""Positions of an image are found where the transform puts them, and pictures are the input."""

import numpy as np
import pytest
from PIL import Image

from mvitv2_det import Recognizer, UserError, Variant
from mvitv2_det.recognition.description import Input
from mvitv2_det.visualize.look_inside_classifier import _last_blocks, _picture, _seen_pixel

INPUTS = {
    "centre": Input(size=64),
    "whole centre": Input(size=96, crop=1.0),
    "squash": Input(size=64, mode="squash", crop=1.0),
    "squash and crop": Input(size=64, mode="squash", crop=0.8),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("position", [(50, 60), (30, 100), (90, 45)])
def test_a_bright_spot_is_found(name, position):
    """A spot of 9×9 pixels on black: its brightest place in the network's input, to a pixel."""
    input = INPUTS[name]
    image = np.zeros((120, 150, 3), np.uint8)
    y, x = position
    image[y - 4 : y + 5, x - 4 : x + 5] = 255
    seen = _picture(input.transform()(Image.fromarray(image)), input)
    assert seen.shape == (input.size, input.size, 3) and seen.min() == 0 and seen.max() > 200
    weights = seen.sum(axis=2)
    centre = [(np.indices(weights.shape)[axis] * weights).sum() / weights.sum() for axis in (0, 1)]
    np.testing.assert_allclose(_seen_pixel(position, (120, 150), input), centre, atol=1)


def test_what_is_cut_off_or_outside_is_refused():
    with pytest.raises(UserError, match=r"20 2 is cut off: the network sees the central 0\.875"):
        _seen_pixel((20, 2), (100, 200), INPUTS["centre"])
    with pytest.raises(UserError, match="height 100 and width 200, got 100 0"):
        _seen_pixel((100, 0), (100, 200), INPUTS["centre"])
    assert _seen_pixel((0, 199), (100, 200), INPUTS["squash"]) == (0, 63)


def test_last_blocks_of_the_stages():
    model = Recognizer.image(Variant(8, (1, 2, 3, 2), 1, 0.0), 2, image_size=64)
    assert _last_blocks(model) == [0, 2, 5, 7]
