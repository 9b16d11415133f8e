"""Positions: decomposed relative tables, one per axis (Eq. 3 and 4), and absolute ones.

Axes: N maps (batch × heads, or windows), Q_a queries and K_a keys along axis a (for images
a is the height, then the width), L = 2·size - 1 table rows, D channels per head.

A table is trained for one grid; other grids resize it linearly (section 4.2). Resizing,
the scaling of coordinates where queries and keys have different strides, and the order of
the float32 operations follow ``get_rel_pos`` in ``detectron2/modeling/backbone/utils.py``.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .caching import cached_per_device

_AXIS_LETTERS = "xyz"


def table_length(size: int, stride_q: int, stride_kv: int) -> int:
    """Rows of the table of an axis with ``size`` tokens before pooling: all its distances."""
    return 2 * max(size // stride_q, size // stride_kv) - 1


def resize_table(table: Tensor, length: int) -> Tensor:
    """Resizes a relative position table linearly.

    Args:
        table: (L, D).
        length: rows wanted.

    Returns:
        (length, D); ``table`` itself where it has that length.
    """
    if table.shape[0] == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear")[0].T


def relative_index(query_size: int, key_size: int, device: torch.device) -> Tensor:
    """The table row of each query and key along one axis.

    The shorter of the two is scaled to the longer one's grid; where their ratio is no whole
    number, the position is cut off in float32 as the reference does.

    Returns:
        int64 (query_size, key_size), values in 0 .. 2·max(query_size, key_size) - 2.
    """
    query_step = max(key_size / query_size, 1.0)
    key_step = max(query_size / key_size, 1.0)
    queries = torch.arange(query_size, device=device)[:, None] * query_step
    keys = torch.arange(key_size, device=device)[None, :] * key_step
    return (queries - keys + (key_size - 1) * key_step).long()


def relative_embedding(table: Tensor, query_size: int, key_size: int) -> Tensor:
    """R of Eq. 4 along one axis, (Q, K, D), from its table (L, D)."""
    table = resize_table(table, 2 * max(query_size, key_size) - 1)
    return table[relative_index(query_size, key_size, table.device)]


cached_relative_index = cached_per_device(relative_index)


def cached_relative_embedding(table: Tensor, query_size: int, key_size: int) -> Tensor:
    """As :func:`relative_embedding`, with an index that is made once per size and device."""
    table = resize_table(table, 2 * max(query_size, key_size) - 1)
    return table[cached_relative_index(query_size, key_size, device=table.device)]


def axis_logits(q: Tensor, tables: Sequence[Tensor], key_size: Sequence[int]) -> list[Tensor]:
    """The terms of E(rel) in Eq. 3, one per axis: each query times R along that axis.

    Args:
        q: (N, Q_1, …, Q_n, D), unscaled.
        tables: one (L_a, D) per axis, or none at all.
        key_size: (K_1, …, K_n).

    Returns:
        one (N, Q_1, …, Q_n, K_a) per table.
    """
    if not tables:
        return []
    query_size = q.shape[1:-1]
    axes = _AXIS_LETTERS[: len(query_size)]
    logits = []
    for axis, table, queries, keys in zip(axes, tables, query_size, key_size, strict=True):
        embedding = relative_embedding(table, queries, keys)
        logits.append(torch.einsum(f"n{axes}d,{axis}kd->n{axes}k", q, embedding))
    return logits


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
    if grid.shape[1:3] == tuple(size):
        return grid
    grid = F.interpolate(grid.permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1)
