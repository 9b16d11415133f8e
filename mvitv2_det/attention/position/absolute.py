"""Absolute positions: a grid of embeddings that is added to the tokens.

Axes: H × W tokens, C channels, P positions of a pre-training grid.
"""

import math

import torch.nn.functional as F
from torch import Tensor

from ...sizes import surely_equal


def absolute_embedding(embedding: Tensor, has_cls_token: bool, size: tuple[int, int]) -> Tensor:
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


def resize_grid(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes absolute positions bicubically.

    Args:
        grid: (1, H, W, C).
        size: (H', W') wanted.

    Returns:
        (1, H', W', C); ``grid`` itself where it has that size.
    """
    if surely_equal(size, grid.shape[1:3]):
        return grid
    grid = F.interpolate(grid.permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1)
