"""Clips around key frames, and boxes of persons in them (AVA).

Axes: T frames, H × W pixels, N persons.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..recognition.description import ClipInput
from .clips import as_clip, normalise, resize_short_side
from .reading import Video
from .sampling import TIME_BASE

VIEWS = ("center", "full")


def key_frame_clip(video: Video, seconds: float, input: ClipInput) -> np.ndarray:
    """(T,) numbers of the frames of a T × τ clip, of which a time is the middle.

    As in PySlowFast, the key frame is the first of the second half, and the first and the last
    frame stand for what is beyond the ends.
    """
    steps = np.arange(input.frames) - input.frames // 2
    return video.indices_at(seconds + steps * (input.rate / TIME_BASE))


def at_view(
    frames: np.ndarray, boxes: np.ndarray, input: ClipInput, view: str
) -> tuple[Tensor, Tensor]:
    """What a test makes of a clip (appendix A.2), with the short side resized to ``input.size``.

    Args:
        frames: (T, H, W, 3) RGB, uint8.
        boxes: (N, 4) in shares of width and height.
        input: the preprocessing.
        view: ``center`` takes the square in the centre, ``full`` all of it.

    Returns:
        (3, T, H', W') and (N, 4) in its pixels, cut off at its edges.
    """
    clip, placed = resized(frames, boxes, input.size, input.interpolation)
    if view == "center":
        # Rounded up, as in PySlowFast.
        corner = [-(-(side - input.size) // 2) for side in clip.shape[-2:]]
        clip, placed = cropped(clip, placed, corner, input.size)
    return normalise(clip, input.mean, input.std), inside(placed, clip)


def resized(
    frames: np.ndarray, boxes: np.ndarray, short: int, interpolation: str
) -> tuple[Tensor, Tensor]:
    """Frames (T, H, W, 3) with their short side resized, as (T, 3, H', W'), and boxes in pixels.

    ``boxes`` (N, 4) are in shares of width and height.
    """
    clip = resize_short_side(as_clip(frames), short, interpolation)
    height, width = clip.shape[-2:]
    return clip, torch.from_numpy(boxes * [width, height, width, height]).float()


def cropped(clip: Tensor, boxes: Tensor, corner: Sequence[int], side: int) -> tuple[Tensor, Tensor]:
    """A square of (…, H, W) whose top and left are given, and boxes in its pixels."""
    top, left = corner
    moved = boxes - torch.tensor([left, top, left, top])
    return clip[..., top : top + side, left : left + side], moved


def inside(boxes: Tensor, clip: Tensor) -> Tensor:
    """Boxes cut off at a clip's last pixels; of persons beyond, a line or a point is left."""
    height, width = clip.shape[-2:]
    most = torch.tensor([width - 1, height - 1, width - 1, height - 1])
    return torch.minimum(boxes.clamp(min=0), most)
