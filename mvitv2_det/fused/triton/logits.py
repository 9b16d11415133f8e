"""Position logits of Eq. 4: each query times R of its row, and R of its column; and backward.

Queries at the same row (or column) of their windows share R, so that one product per row gives the
logits of all of them. Logits are computed once per query and hold K_h + K_w numbers, never one per
query and key.

Axes: B images, h heads, H × W queries, d channels of a head padded to D, Q_a queries and K_a keys
along axis a of a window, T columns of the logits. All queries at one position along the axis of
their windows, of all windows, images and heads, share one R (K_a, d): a kernel has programs for
each of the Q_a positions, and goes through their queries in blocks.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shape import AttentionShape
from .attention_tiles import product, zeros
from .launch import PROCESSORS, Blocks, accumulator, accumulator_dtype, operand, padded


class AxisQueries(NamedTuple):
    """The queries that share a position along an axis ("along"; "across" is the other axis)."""

    count: int  # at each position; positions that the last window lacks are counted too
    along: int  # size of the map
    across: int
    window: int  # Q_a
    keys: int  # K_a
    tokens: int  # H·W
    q_b: int  # strides of q
    q_along: int
    q_across: int
    token_along: int  # strides of a contiguous (H, W) map
    token_across: int

    @classmethod
    def of(cls, q: Tensor, rel: Tensor, axis: int, shape: AttentionShape) -> "AxisQueries":
        """The queries of (B, H, W, C) along an axis whose R is (Q_a, K_a, d)."""
        along, across = q.shape[1 + axis], q.shape[2 - axis]
        windows = triton.cdiv(along, shape.window_q[axis])
        strides, token_strides = q.stride()[1:3], (q.shape[2], 1)
        return cls(
            count=len(q) * windows * across * shape.heads,
            along=along,
            across=across,
            window=shape.window_q[axis],
            keys=rel.shape[1],
            tokens=along * across,
            q_b=q.stride(0),
            q_along=strides[axis],
            q_across=strides[1 - axis],
            token_along=token_strides[axis],
            token_across=token_strides[1 - axis],
        )


class AxisConstants(NamedTuple):
    """Constants that the kernels are compiled for, apart from the size of blocks."""

    heads: int
    channels: int  # of a head
    d: int  # channels of a head, padded
    terms: int  # T
    first: int  # column of the axis' first logit
    columns: int  # of the axis, some of which may be zeros
    padded_columns: int
    accumulator: tl.dtype
    operand: tl.dtype

    @classmethod
    def of(cls, q: Tensor, rel: Tensor, axis: int, shape: AttentionShape) -> "AxisConstants":
        """The constants for one axis of an attention."""
        terms, second = term_columns(shape.window_kv)
        first, end = (0, second) if axis == 0 else (second, terms)
        channels, columns = rel.shape[2], end - first
        sizes = shape.heads, channels, padded(channels), terms, first, columns, padded(columns)
        return cls(*sizes, accumulator(q), operand(q))


def term_columns(window_kv: tuple[int, int]) -> tuple[int, int]:
    """T, a power of two, and the first column of the second axis' logits.

    Each axis begins at half of the columns where that leaves room enough: then both of its
    products are of the smallest size.
    """
    rows, columns = window_kv
    total = max(padded(rows + columns), 32)
    return total, total // 2 if max(rows, columns) <= total // 2 else rows


def logits_blocks(dtype: torch.dtype, columns: int, *, backward: bool) -> Blocks:
    """Blocks of queries for an axis with so many columns.

    Chosen so that several programs share a processor: compiled for sm_90, forward takes 94
    registers a thread or fewer, backward 128 for windows of 14 × 14 keys and 186 for whole maps
    of 25 × 34. float32 has no tensor cores at full precision, and its products are unrolled.
    """
    if dtype.itemsize > 2:
        return Blocks(queries=16, keys=0, warps=8, stages=1)
    if backward:
        return Blocks(queries=32, keys=0, warps=4 if columns <= 64 else 8, stages=2)
    return Blocks(queries=64, keys=0, warps=8, stages=1)


def logits_forward(q: Tensor, rel_h: Tensor, rel_w: Tensor, shape: AttentionShape) -> Tensor:
    """Logits of a query for each row and each column of its window's keys (Eq. 4).

    Reads q twice (the second time from the L2 cache, as a rule) and both R; writes
    B·h·H·W·T numbers.

    Args:
        q: (B, H, W, C), unscaled; channels contiguous.
        rel_h, rel_w: (Q_a, K_a, d).
        shape: of the attention.

    Returns:
        (B, h, H, W, T) in q's dtype: rows, zeros, columns from the place that
        :func:`term_columns` gives, zeros.
    """
    terms, _ = term_columns(shape.window_kv)
    logits = q.new_empty(len(q), shape.heads, *q.shape[1:3], terms)
    for axis, rel in enumerate((rel_h, rel_w)):
        queries = AxisQueries.of(q, rel, axis, shape)
        constants = AxisConstants.of(q, rel, axis, shape)
        blocks = logits_blocks(q.dtype, constants.columns, backward=False)
        grid = (triton.cdiv(queries.count, blocks.queries), rel.shape[0])
        _logits_forward_kernel[grid](
            q, rel.contiguous(), logits, queries, constants, blocks.queries, **blocks.options
        )
    return logits


def logits_backward(
    grad_logits: Tensor,
    q: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    grad_q: Tensor,
    shape: AttentionShape,
) -> tuple[Tensor, Tensor]:
    """Gradients of both R; adds to ``grad_q`` what comes through the logits of columns.

    ``grad_q`` is (B, H, W, C) contiguous, and already has what comes through the logits of rows.
    Per axis this reads the gradients of the axis' logits and q, and writes a float32
    (Q_a, K_a, d) for each program of a position; these are added in fixed order. ``grad_q`` is
    read and written once.
    """
    grads = []
    for axis, rel in enumerate((rel_h, rel_w)):
        queries = AxisQueries.of(q, rel, axis, shape)
        constants = AxisConstants.of(q, rel, axis, shape)
        blocks = logits_blocks(q.dtype, constants.columns, backward=True)
        tiles = triton.cdiv(queries.count, blocks.queries)
        programs = min(tiles, triton.cdiv(2 * PROCESSORS, rel.shape[0]))
        partial = q.new_empty(programs, *rel.shape, dtype=accumulator_dtype(q))
        _logits_backward_kernel[(programs, rel.shape[0])](
            q,
            rel.contiguous(),
            grad_logits,
            grad_q,
            partial,
            queries,
            triton.cdiv(tiles, programs),
            constants,
            axis == 1,
            blocks.queries,
            **blocks.options,
        )
        grads.append(partial.sum(0).to(rel.dtype))
    return grads[0], grads[1]


@triton.jit
def _places(start, position, queries, CONST: tl.constexpr, BLOCK: tl.constexpr):
    """Image, places along and across the axis, and head of queries; and whether each exists.

    Heads are counted the fastest: they lie side by side in memory.
    """
    places = start + tl.arange(0, BLOCK)
    head = places % CONST.heads
    across = places // CONST.heads % queries.across
    window = places // CONST.heads // queries.across
    windows = tl.cdiv(queries.along, queries.window)
    along = window % windows * queries.window + position
    inside = (places < queries.count) & (along < queries.along)
    return (window // windows).to(tl.int64), along.to(tl.int64), across.to(tl.int64), head, inside


@triton.jit
def _load_rel(rel, position, keys, CONST: tl.constexpr):
    """(padded columns, D): R of a position, padded with zeros."""
    key, channel = tl.arange(0, CONST.padded_columns)[:, None], tl.arange(0, CONST.d)[None, :]
    mask = (key < keys) & (channel < CONST.channels)
    return tl.load(rel + (position * keys + key) * CONST.channels + channel, mask=mask, other=0.0)


@triton.jit
def _logits_forward_kernel(
    q, rel, logits, queries, CONST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Logits of a block of the queries at one position."""
    position = tl.program_id(1)
    image, along, across, head, inside = _places(
        tl.program_id(0) * BLOCK, position, queries, CONST, BLOCK
    )
    channel, column = tl.arange(0, CONST.d)[None, :], tl.arange(0, CONST.padded_columns)[None, :]
    at = image * queries.q_b + along * queries.q_along + across * queries.q_across
    at += head * CONST.channels
    mask = inside[:, None] & (channel < CONST.channels)
    x = tl.load(q + at[:, None] + channel, mask=mask, other=0.0)
    keys = tl.trans(_load_rel(rel, position, queries.keys, CONST))
    empty = zeros(BLOCK, CONST.padded_columns, CONST.accumulator)
    found = product(x, keys, empty, CONST.operand)
    token = (image * CONST.heads + head) * queries.tokens
    token += along * queries.token_along + across * queries.token_across
    tl.store(
        logits + (token * CONST.terms + CONST.first)[:, None] + column,
        found.to(logits.dtype.element_ty),
        mask=inside[:, None] & (column < CONST.columns),
    )


@triton.jit
def _logits_backward_kernel(
    q, rel, grad_logits, grad_q, grad_rel, queries, tiles_per_program,
    CONST: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program's part of the gradient of R at one position.

    ``ADD``: also adds the gradient of its queries to ``grad_q``.
    """
    program, position = tl.program_id(0), tl.program_id(1)
    channel, column = tl.arange(0, CONST.d)[None, :], tl.arange(0, CONST.padded_columns)[None, :]
    keys = _load_rel(rel, position, queries.keys, CONST)
    total = zeros(CONST.padded_columns, CONST.d, CONST.accumulator)
    for tile in range(program * tiles_per_program, (program + 1) * tiles_per_program):
        image, along, across, head, inside = _places(tile * BLOCK, position, queries, CONST, BLOCK)
        mask = inside[:, None] & (channel < CONST.channels)
        at = image * queries.q_b + along * queries.q_along + across * queries.q_across
        at += head * CONST.channels
        x = tl.load(q + at[:, None] + channel, mask=mask, other=0.0)
        place = along * queries.token_along + across * queries.token_across
        token = (image * CONST.heads + head) * queries.tokens + place
        grad = tl.load(
            grad_logits + (token * CONST.terms + CONST.first)[:, None] + column,
            mask=inside[:, None] & (column < CONST.columns),
            other=0.0,
        )
        if ADD:
            pixel = (image * queries.tokens + place) * CONST.heads + head
            target = grad_q + pixel[:, None] * CONST.channels + channel
            before = tl.load(target, mask=mask, other=0.0).to(CONST.accumulator)
            empty = zeros(BLOCK, CONST.d, CONST.accumulator)
            after = before + product(grad, keys, empty, CONST.operand)
            tl.store(target, after.to(grad_q.dtype.element_ty), mask=mask)
        total = product(tl.trans(grad), x, total, CONST.operand)
    key = tl.arange(0, CONST.padded_columns)[:, None]
    at = ((program * tl.num_programs(1) + position) * queries.keys + key) * CONST.channels
    tl.store(grad_rel + at + channel, total, mask=(key < queries.keys) & (channel < CONST.channels))
