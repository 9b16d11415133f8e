"""Absolute positions: embeddings that are added to the tokens where they enter the network.

Axes: T frames of tokens, H × W tokens, C channels, P positions of a square pre-training grid.

Images have one embedding per position, ``pos_embed``. Clips have separable ones, as in PySlowFast
(row 2 of Table A.6): the sum of one per place of a frame and one per frame.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ...sizes import surely_equal

ABSOLUTE_NAMES = ("pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class")


def absolute_shapes(
    size: Sequence[int], channels: int, has_class_position: bool
) -> dict[str, tuple[int, int, int]]:
    """The shape of each parameter, by its name in facebookresearch/mvit and PySlowFast.

    Args:
        size: (H, W), or (T, H, W), of the tokens of pre-training.
        channels: C.
        has_class_position: whether there is one for a class token.
    """
    if len(size) == 2:
        return {"pos_embed": (1, math.prod(size) + int(has_class_position), channels)}
    shapes = {
        "pos_embed_spatial": (1, math.prod(size[1:]), channels),
        "pos_embed_temporal": (1, size[0], channels),
    }
    return shapes | ({"pos_embed_class": (1, 1, channels)} if has_class_position else {})


def absolute_embedding(embedding: Tensor, has_cls_token: bool, size: Sequence[int]) -> Tensor:
    """Absolute positions for a token map of any size, resized bicubically.

    Args:
        embedding: (1, P, C) with P = side², one more in front where ``has_cls_token``.
        has_cls_token: the first position belongs to a class token, which is dropped.
        size: (H, W) of the token map.

    Returns:
        (1, H, W, C).
    """
    if has_cls_token:
        embedding = embedding[:, 1:]
    side = math.isqrt(embedding.shape[1])
    return resize_grid(embedding.reshape(1, side, side, -1), size)


def separable_embedding(spatial: Tensor, temporal: Tensor, size: Sequence[int]) -> Tensor:
    """Separable positions for clips of any size, resized bicubically in space, linearly in time.

    Args:
        spatial: (1, P, C) with P = side².
        temporal: (1, T', C).
        size: (T, H, W) of the token map.

    Returns:
        (1, T, H, W, C).
    """
    frames, *places = size
    in_space = absolute_embedding(spatial, has_cls_token=False, size=places)
    in_time = resize_frames(temporal, frames)
    return in_space[:, None] + in_time[:, :, None, None]


def resize_grid(grid: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes absolute positions bicubically.

    Args:
        grid: (1, H, W, C).
        size: (H', W') wanted.

    Returns:
        (1, H', W', C); ``grid`` itself where it has that size.
    """
    if surely_equal(size, grid.shape[1:3]):
        return grid
    grid = F.interpolate(
        grid.permute(0, 3, 1, 2), size=tuple(size), mode="bicubic", align_corners=False
    )
    return grid.permute(0, 2, 3, 1)


def resize_frames(frames: Tensor, number: int) -> Tensor:
    """Resizes temporal positions (1, T', C) linearly to (1, T, C)."""
    if surely_equal((number,), frames.shape[1:2]):
        return frames
    return F.interpolate(frames.transpose(1, 2), size=number, mode="linear").transpose(1, 2)
