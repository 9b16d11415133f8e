"""Fitting tensors of one network into another of the same layout.

Axes: C' × C filters of T frames, H × W; L rows of a relative position table; P absolute
positions; D channels per head.

Filters of an image network become those of a clip network (section 4.3), and back; position
tables and absolute positions are resized with the interpolation of the forward pass (section 4.2),
or relative ones shifted so that the row of distance zero stays the row of distance zero.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from ..attention.position import resize_grid, resize_table
from ..errors import UserError
from .key_maps import ABSOLUTE_POSITIONS, SPATIAL_POSITIONS, TEMPORAL_POSITIONS
from .layout import Layout

# Ways of giving an image network's filter to the frames of a clip network's.
INFLATIONS = ("centre", "mean", "repeat")


def centre_frame(weight: Tensor) -> Tensor:
    """Reduces video filters (C', C, T, H, W) to their centre frame (C', C, H, W).

    This inverts the inflation of section 4.3, which puts the filters of an image network into the
    centre frame. Other tensors are returned unchanged.
    """
    return weight[:, :, weight.shape[2] // 2] if weight.dim() == 5 else weight


def inflated(weight: Tensor, frames: int, how: str) -> Tensor:
    """Makes filters of clips (C', C, T, H, W) from filters of images (C', C, H, W).

    Args:
        weight: filters of images.
        frames: T.
        how: ``centre`` puts the filter into the centre frame and zeros into the others (section
            4.3); ``mean`` gives every frame 1 / T of it, as I3D does (PySlowFast's
            ``CHECKPOINT_INFLATE``); ``repeat`` gives every frame all of it (PySlowFast's
            ``CHECKPOINT_IN_INIT``), so that a still clip gets T times the activations.
    """
    filters = weight.unsqueeze(2).repeat(1, 1, frames, 1, 1)
    if how == "centre":
        filters[:, :, torch.arange(frames) != frames // 2] = 0
    return filters / frames if how == "mean" else filters


def resized_positions(name: str, value: Tensor, wanted: Tensor) -> Tensor:
    """Resizes positions of any kind to those of the model; returns other tensors unchanged.

    Args:
        name: name of the tensor in :mod:`mvitv2_det.weights.layout`.
        value: the tensor of the checkpoint.
        wanted: the tensor of the model.

    Returns:
        A tensor of the shape of ``wanted``, or ``value`` where it cannot be resized.
    """
    if value.shape == wanted.shape or value.dim() != wanted.dim():
        return value
    leaf = name.rpartition(".")[2]
    # Half precision is resized in float32.
    precise = value.to(torch.promote_types(value.dtype, torch.float32))
    if leaf.startswith("rel_pos_"):
        return resize_table(precise, *wanted.shape[:-1])
    if name == TEMPORAL_POSITIONS:
        return resize_table(precise[0], wanted.shape[1])[None]
    if name in (ABSOLUTE_POSITIONS, SPATIAL_POSITIONS):
        return _resized_absolute(precise, wanted)
    return value


def has_class_position(positions: Tensor) -> bool:
    """Tells whether the first of absolute positions (1, P, C) is that of a class token.

    Only one of P and P - 1 can be a square number.
    """
    return math.isqrt(positions.shape[1]) ** 2 != positions.shape[1]


def _resized_absolute(value: Tensor, wanted: Tensor) -> Tensor:
    """Resizes absolute positions (1, P, C), with or without that of a class token."""
    grid = value[:, 1:] if has_class_position(value) else value
    side, new_side = math.isqrt(grid.shape[1]), math.isqrt(wanted.shape[1])
    if side**2 != grid.shape[1] or value.shape[2] != wanted.shape[2]:
        return value
    grid = resize_grid(grid.reshape(1, side, side, -1), (new_side, new_side)).flatten(1, 2)
    if not has_class_position(wanted):
        return grid
    # Without a class token in the source the model's own row stays unchanged.
    first = value[:, :1] if has_class_position(value) else wanted[:, :1].to(grid)
    return torch.cat((first.to(grid.device), grid), dim=1)


def aligned_tables(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, bool]]:
    """Moves spatial tables to the rows that mean the same distances in another network.

    Distance zero lies at row (K - 1) · max(Q / K, 1) of the table of Q queries and K keys along an
    axis, and a row is 1 / max(Q, K) of the image. Networks whose keys and values have other strides
    therefore read other distances from the same row: image networks start at stride 4, clip
    networks at 8. A row of the result is the source's at the same distance, interpolated linearly,
    and the source's first or last row beyond its end.

    Args:
        theirs, ours: weights of the two networks, by the names of :mod:`mvitv2_det.weights.layout`.

    Returns:
        by name, each of our ``rel_pos_h`` and ``rel_pos_w``, and whether it differs from theirs.

    Raises:
        UserError: the tables do not tell how many queries and keys each block has.
    """
    result = {}
    for axis in "hw":
        our_grids, their_grids = _grids(ours, axis), _grids(theirs, axis)
        for index, ((q, k), (their_q, their_k)) in enumerate(
            zip(our_grids, their_grids, strict=True)
        ):
            name = f"blocks.{index}.attn.rel_pos_{axis}"
            table = theirs[name].to(torch.promote_types(theirs[name].dtype, torch.float32))
            rows = torch.arange(2 * max(q, k) - 1, dtype=torch.float64, device=table.device)
            scale = max(their_q, their_k) / max(q, k)
            rows = _zero_row(their_q, their_k) + (rows - _zero_row(q, k)) * scale
            rows = rows.clamp(0, len(table) - 1)
            low = rows.floor().long()
            share = (rows - low).to(table.dtype)[:, None]
            high = (low + 1).clamp(max=len(table) - 1)
            aligned = torch.lerp(table[low], table[high], share)
            moved = not torch.equal(rows, torch.arange(len(table)).to(rows))
            result[name] = (aligned, moved)
    return result


def _zero_row(queries: int, keys: int) -> float:
    return (keys - 1) * max(queries / keys, 1)


def _grids(weights: Mapping[str, Tensor], axis: str) -> list[tuple[int, int]]:
    """Finds the numbers of queries and keys along an axis in each block, from the tables' lengths.

    The first block has as many queries as tokens. The first block of a stage halves the queries,
    and its keys have the stride of the new stage on the tokens of the old one: where that stride is
    1, its table is twice as long, which tells the stride of every stage.
    """
    layout = Layout.of(weights)
    names = [f"blocks.{index}.attn.rel_pos_{axis}" for index in range(sum(layout.blocks))]
    if not all(name in weights for name in names):
        raise UserError(f"tables='aligned' needs a rel_pos_{axis} in every block")
    lengths = [len(weights[name]) for name in names]
    tokens = (lengths[0] + 1) // 2
    starts = [sum(layout.blocks[:stage]) for stage in range(len(layout.blocks) + 1)]
    unstrided = [
        stage
        for stage, start in enumerate(starts[1:-1], start=1)
        if lengths[start] == 2 * (tokens >> (stage - 1)) - 1
    ]
    # Where the second stage has stride 1 already, the first may have 1 or 2.
    stride = 2 ** unstrided[0] if unstrided and unstrided[0] > 1 else 0
    grids = []
    for stage, (start, end) in enumerate(pairwise(starts)):
        for index in range(start, end):
            before = tokens >> (stage - 1 if index == start and stage else stage)
            grids.append((tokens >> stage, before // max(stride >> stage, 1)))
    if not stride or lengths != [2 * max(q, k) - 1 for q, k in grids]:
        raise UserError(
            f"tables='aligned' cannot tell from the lengths of rel_pos_{axis} which row is that of "
            f"distance zero; use tables='as_is'"
        )
    return grids
