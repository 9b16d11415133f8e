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

import triton
import triton.language as tl
from torch import Tensor

from ..shape import AttentionShape
from .attention_tiles import product, zeros
from .launch import PROCESSORS, Blocks, accumulator, accumulator_dtype, operand, padded
from .tile_table import Case, measured_or


class AxisQueries(NamedTuple):
    """The queries that share a position along an axis ("along"; "across" is the other axis).

    Kernels take the numbers one by one: see ``attention_arguments.Windows``. They are compiled for
    the divisibility of q's strides, which makes accesses of 16 bytes.
    """

    count: int  # at each position; positions that the last window lacks are counted too
    along: int  # size of the map
    across: int
    window: int  # Q_a
    keys: int  # K_a
    heads: int
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
            heads=shape.heads,
            tokens=along * across,
            q_b=q.stride(0),
            q_along=strides[axis],
            q_across=strides[1 - axis],
            token_along=token_strides[axis],
            token_across=token_strides[1 - axis],
        )


_UNSPECIALISED = [name for name in AxisQueries._fields if not name.startswith("q_")]


class AxisColumns(NamedTuple):
    """The columns of an axis among those of the logits."""

    first: int
    count: int  # some of which may be zeros

    @classmethod
    def of(cls, axis: int, shape: AttentionShape) -> "AxisColumns":
        """The columns of one axis of an attention."""
        terms, second = term_columns(shape.window_kv)
        return cls(0, second) if axis == 0 else cls(second, terms - second)


class AxisConstants(NamedTuple):
    """Constants that the kernels are compiled for, apart from the size of blocks."""

    channels: int  # of a head
    d: int  # channels of a head, padded
    terms: int  # T
    padded_columns: int
    accumulator: tl.dtype
    operand: tl.dtype

    @classmethod
    def of(cls, q: Tensor, rel: Tensor, shape: AttentionShape) -> "AxisConstants":
        """The constants of an attention, the same for both axes: fewer kernels to compile."""
        terms, second = term_columns(shape.window_kv)
        half = terms // 2
        channels, columns = rel.shape[2], half if second == half else terms
        return cls(channels, padded(channels), terms, columns, accumulator(q), operand(q))

    def case_of(self, q: Tensor) -> Case:
        """What the blocks depend on."""
        return Case(q.dtype, self.channels, self.padded_columns)


def term_columns(window_kv: tuple[int, int]) -> tuple[int, int]:
    """T, a power of two, and the first column of the second axis' logits.

    Each axis begins at half of the columns where that leaves room enough: then both of its
    products are of the smallest size.
    """
    rows, columns = window_kv
    total = max(padded(rows + columns), 32)
    return total, total // 2 if max(rows, columns) <= total // 2 else rows


@measured_or("logits_forward")
def forward_blocks(case: Case) -> Blocks:
    """Blocks of queries of the forward kernel, of which several programs share a processor.

    Compiled for sm_90, it takes 94 registers a thread or fewer. float32 has no tensor cores at
    full precision, and its products are unrolled.
    """
    if case.dtype.itemsize > 2:
        return Blocks(queries=16, keys=0, warps=8, stages=1)
    return Blocks(queries=64, keys=0, warps=8, stages=1)


@measured_or("logits_backward")
def backward_blocks(case: Case) -> Blocks:
    """As :func:`forward_blocks`: 128 registers for 14 × 14 keys, 186 for whole maps of 25 × 34."""
    if case.dtype.itemsize > 2:
        return Blocks(queries=16, keys=0, warps=8, stages=1)
    return Blocks(queries=32, keys=0, warps=4 if case.terms <= 64 else 8, stages=2)


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
        queries, columns = AxisQueries.of(q, rel, axis, shape), AxisColumns.of(axis, shape)
        constants = AxisConstants.of(q, rel, shape)
        blocks = forward_blocks(q.device, constants.case_of(q))
        grid = (triton.cdiv(queries.count, blocks.queries), rel.shape[0])
        _logits_forward_kernel[grid](
            q,
            rel.contiguous(),
            logits,
            *queries,
            *columns,
            constants,
            blocks.queries,
            **blocks.options,
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
        queries, columns = AxisQueries.of(q, rel, axis, shape), AxisColumns.of(axis, shape)
        constants = AxisConstants.of(q, rel, shape)
        blocks = backward_blocks(q.device, constants.case_of(q))
        tiles = triton.cdiv(queries.count, blocks.queries)
        programs = min(tiles, triton.cdiv(2 * PROCESSORS, rel.shape[0]))
        partial = q.new_empty(programs, *rel.shape, dtype=accumulator_dtype(q))
        _logits_backward_kernel[(programs, rel.shape[0])](
            q,
            rel.contiguous(),
            grad_logits,
            grad_q,
            partial,
            *queries,
            *columns,
            triton.cdiv(tiles, programs),
            axis,
            constants,
            blocks.queries,
            **blocks.options,
        )
        grads.append(partial.sum(0).to(rel.dtype))
    return grads[0], grads[1]


@triton.jit
def _places(start, position, queries, BLOCK: tl.constexpr):
    """Image, places along and across the axis (y and x), and head of queries; whether each exists.

    Heads are counted the fastest: they lie side by side in memory.
    """
    places = start + tl.arange(0, BLOCK)
    head = places % queries.heads
    across = places // queries.heads % queries.across
    window = places // queries.heads // queries.across
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


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _logits_forward_kernel(
    q, rel, logits, count, along, across, window, keys, heads, tokens, q_b, q_along, q_across,
    token_along, token_across, first_column, columns, CONST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Logits of a block of the queries at one position."""
    queries = AxisQueries(
        count, along, across, window, keys, heads, tokens, q_b, q_along, q_across, token_along,
        token_across,
    )  # fmt: skip
    position = tl.program_id(1)
    image, y, x, head, inside = _places(tl.program_id(0) * BLOCK, position, queries, BLOCK)
    channel, column = tl.arange(0, CONST.d)[None, :], tl.arange(0, CONST.padded_columns)[None, :]
    at = image * q_b + y * q_along + x * q_across + head * CONST.channels
    mask = inside[:, None] & (channel < CONST.channels)
    block = tl.load(q + at[:, None] + channel, mask=mask, other=0.0)
    embeddings = tl.trans(_load_rel(rel, position, keys, CONST))
    empty = zeros(BLOCK, CONST.padded_columns, CONST.accumulator)
    found = product(block, embeddings, empty, CONST.operand)
    token = (image * heads + head) * tokens + y * token_along + x * token_across
    tl.store(
        logits + (token * CONST.terms + first_column)[:, None] + column,
        found.to(logits.dtype.element_ty),
        mask=inside[:, None] & (column < columns),
    )


@triton.jit(do_not_specialize=[*_UNSPECIALISED, "tiles_per_program", "adds"])
def _logits_backward_kernel(
    q, rel, grad_logits, grad_q, grad_rel, count, along, across, window, keys, heads, tokens, q_b,
    q_along, q_across, token_along, token_across, first_column, columns, tiles_per_program, adds,
    CONST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program's part of the gradient of R at one position.

    ``adds``: 1 to add the gradient of its queries to ``grad_q`` too, 0 not to.
    """
    queries = AxisQueries(
        count, along, across, window, keys, heads, tokens, q_b, q_along, q_across, token_along,
        token_across,
    )  # fmt: skip
    program, position = tl.program_id(0), tl.program_id(1)
    channel, column = tl.arange(0, CONST.d)[None, :], tl.arange(0, CONST.padded_columns)[None, :]
    embeddings = _load_rel(rel, position, keys, CONST)
    total = zeros(CONST.padded_columns, CONST.d, CONST.accumulator)
    for tile in range(program * tiles_per_program, (program + 1) * tiles_per_program):
        image, y, x, head, inside = _places(tile * BLOCK, position, queries, BLOCK)
        mask = inside[:, None] & (channel < CONST.channels)
        at = image * q_b + y * q_along + x * q_across + head * CONST.channels
        block = tl.load(q + at[:, None] + channel, mask=mask, other=0.0)
        place = y * token_along + x * token_across
        token = (image * heads + head) * tokens + place
        grad = tl.load(
            grad_logits + (token * CONST.terms + first_column)[:, None] + column,
            mask=inside[:, None] & (column < columns),
            other=0.0,
        )
        if adds == 1:
            pixel = (image * tokens + place) * heads + head
            target = grad_q + pixel[:, None] * CONST.channels + channel
            before = tl.load(target, mask=mask, other=0.0).to(CONST.accumulator)
            empty = zeros(BLOCK, CONST.d, CONST.accumulator)
            after = before + product(grad, embeddings, empty, CONST.operand)
            tl.store(target, after.to(grad_q.dtype.element_ty), mask=mask)
        total = product(tl.trans(grad), block, total, CONST.operand)
    key = tl.arange(0, CONST.padded_columns)[:, None]
    at = ((program * tl.num_programs(1) + position) * keys + key) * CONST.channels
    tl.store(grad_rel + at + channel, total, mask=(key < keys) & (channel < CONST.channels))
