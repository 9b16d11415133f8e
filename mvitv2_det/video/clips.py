"""Clips of videos as networks take them in evaluation and prediction.

Axes: V views, T frames, H × W pixels, S the side of the input.
"""

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from .reading import Video
from .sampling import clip_times, random_start, segment_frames, span, uniform_starts

SAMPLINGS = ("stride", "segments")


def random_clip(
    video: Video, frames: int, rate: float, sampling: str, rng: np.random.Generator
) -> np.ndarray:
    """(T,) numbers of the frames of a random clip.

    Args:
        video: an open one.
        frames: T.
        rate: τ, the distance of frames in 30ths of a second; segments do not use it.
        sampling: ``stride`` or ``segments``; see :mod:`mvitv2_det.video.sampling`.
        rng: what draws.
    """
    if sampling == "segments":
        return segment_frames(len(video), frames, rng)
    start = random_start(video.duration, span(frames, rate), rng)
    return video.indices_at(clip_times(start, frames, rate))


def uniform_clips(video: Video, frames: int, rate: float, sampling: str, clips: int) -> np.ndarray:
    """(clips, T) numbers of the frames of clips that are spread over a video.

    Args:
        video, frames, rate, sampling: as in :func:`random_clip`.
        clips: K; one of segments, which covers the whole video.
    """
    if sampling == "segments":
        return segment_frames(len(video), frames)[None]
    starts = uniform_starts(video.duration, span(frames, rate), clips)
    times = [clip_times(start, frames, rate) for start in starts]
    return video.indices_at(np.concatenate(times)).reshape(clips, frames)


def as_clip(frames: np.ndarray) -> Tensor:
    """(T, H, W, 3) uint8 to (T, 3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)


def resize_short_side(clip: Tensor, side: int, interpolation: str = "bilinear") -> Tensor:
    """Resizes (T, 3, H, W) so that its short side is given; the long one is rounded down.

    There is no antialiasing, as in PySlowFast and mmaction2, with which the released networks
    were trained.
    """
    height, width = clip.shape[-2:]
    if min(height, width) == side:
        return clip
    if height < width:
        size = [side, int(width / height * side)]
    else:
        size = [int(height / width * side), side]
    return resize(clip, size, interpolation)


def resize(clip: Tensor, size: list[int], interpolation: str = "bilinear") -> Tensor:
    """Resizes (T, 3, H, W) to H and W, without antialiasing."""
    return F.resize(clip, size, F.InterpolationMode(interpolation), antialias=False)


def spatial_crops(clip: Tensor, side: int, crops: int) -> list[Tensor]:
    """Square crops of (T, 3, H, W): one of the centre, or three along the longer side.

    Three are at the left or top, in the centre, and at the right or bottom; each is of the middle
    of the shorter side.
    """
    height, width = clip.shape[-2:]
    y, x = -(-(height - side) // 2), -(-(width - side) // 2)
    corners = [(y, x)]
    if crops == 3:
        corners = [(y, 0), (y, x), (y, width - side)]
        if height > width:
            corners = [(0, x), (y, x), (height - side, x)]
    return [clip[..., top : top + side, left : left + side] for top, left in corners]


def normalise(clip: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(T, 3, S, S) of 0 to 255 to (3, T, S, S), with means and deviations of colours in [0, 1]."""
    scaled = clip.to(torch.float32) / 255
    return F.normalize(scaled, list(mean), list(std)).transpose(0, 1).contiguous()
