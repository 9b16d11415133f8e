"""Position logits of Eq. 4: each query times R of its row, and R of its column; and backward.

Queries at the same row (or column) of their windows share R, so that one product per row gives the
logits of all of them. Logits are computed once per query and hold K_h + K_w numbers, never one per
query and key.

Axes: B images, h heads, H × W queries, d channels of a head padded to D, Q_a queries and K_a keys
along axis a of a window, T columns of the logits. All queries at one position along the axis of
their windows, of all windows, images and heads, share one R (K_a, d): a kernel has programs for
each of the Q_a positions, and goes through their queries in blocks. One launch serves both axes:
the positions of height come first.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..shape import AttentionShape
from .attention_tiles import product, zeros
from .axis_tables import AxisTable, table_gradients
from .launch import PROCESSORS, Blocks, accumulator, accumulator_dtype, ceil_div, operand, padded
from .tile_table import Case, measured_or


class Queries(NamedTuple):
    """Sizes of the map of queries, of windows, and of keys.

    Kernels take the numbers one by one: see ``attention_arguments.Windows``. They are compiled for
    the divisibility of q's strides, which makes accesses of 16 bytes.
    """

    count_h: int  # at each row of a window; rows that the last window lacks are counted too
    count_w: int  # at each column
    height: int  # of the map
    width: int
    rows: int  # of a window
    columns: int
    key_rows: int
    key_columns: int
    heads: int
    second: int  # first column of the logits of columns of keys
    q_b: int  # strides of q
    q_y: int
    q_x: int

    @classmethod
    def of(cls, q: Tensor, shape: AttentionShape) -> "Queries":
        """The queries (B, H, W, C) of an attention."""
        batch, height, width, _ = q.shape
        (rows, columns), second = shape.window_q, term_columns(shape.window_kv)[1]
        return cls(
            batch * ceil_div(height, rows) * width * shape.heads,
            batch * ceil_div(width, columns) * height * shape.heads,
            height, width, rows, columns, *shape.window_kv, shape.heads, second, *q.stride()[:3],
        )  # fmt: skip

    @property
    def positions(self) -> int:
        """Positions of queries in a window, those of its rows and of its columns."""
        return self.rows + self.columns

    def tiles(self, block: int) -> int:
        """Blocks of queries at a position of the axis that has more."""
        return ceil_div(max(self.count_h, self.count_w), block)


_UNSPECIALISED = [name for name in Queries._fields if not name.startswith("q_")]


class AxisConstants(NamedTuple):
    """Constants that the kernels are compiled for, apart from the size of blocks."""

    channels: int  # of a head
    d: int  # channels of a head, padded
    terms: int  # T
    padded_columns: int
    accumulator: tl.dtype
    operand: tl.dtype

    @classmethod
    def of(cls, q: Tensor, shape: AttentionShape) -> "AxisConstants":
        """The constants of an attention, the same for both axes: fewer kernels to compile."""
        terms, second = term_columns(shape.window_kv)
        half = terms // 2
        channels, columns = q.shape[3] // shape.heads, half if second == half else terms
        return cls(channels, padded(channels), terms, columns, accumulator(q), operand(q))

    def case_of(self, q: Tensor) -> Case:
        """What the blocks depend on."""
        return Case(q.dtype, self.channels, self.padded_columns)


def term_columns(window_kv: tuple[int, int]) -> tuple[int, int]:
    """T, a power of two, and the first column of the second axis' logits.

    Of 32 columns each axis has half where that is room enough: then both of its products are of
    the smallest size. Halves of more would be other kernels, which nothing has tried on a GPU.
    """
    rows, columns = window_kv
    total = max(padded(rows + columns), 32)
    return total, 16 if max(rows, columns, total // 2) == 16 else rows


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
    """Blocks of queries of the backward kernel.

    Compiled for sm_90, it takes 128 registers a thread for windows of 14 × 14 keys, and 186 for
    whole maps of 25 × 34.
    """
    if case.dtype.itemsize > 2:
        return Blocks(queries=16, keys=0, warps=8, stages=1)
    return Blocks(queries=32, keys=0, warps=4 if case.terms <= 64 else 8, stages=2)


def logits_forward(q: Tensor, rel_h: AxisTable, rel_w: AxisTable, shape: AttentionShape) -> Tensor:
    """Logits of a query for each row and each column of its window's keys (Eq. 4).

    Reads q twice (the second time from the L2 cache, as a rule) and both R; writes
    B·h·H·W·T numbers.

    Args:
        q: (B, H, W, C), unscaled; channels contiguous.
        rel_h, rel_w: R, (Q_a, K_a, d).
        shape: of the attention.

    Returns:
        (B, h, H, W, T) in q's dtype: rows, zeros, columns from the place that
        :func:`term_columns` gives, zeros.
    """
    constants, queries = AxisConstants.of(q, shape), Queries.of(q, shape)
    logits = q.new_empty(len(q), shape.heads, *q.shape[1:3], constants.terms)
    blocks = forward_blocks(q.device, constants.case_of(q))
    _logits_forward_kernel[(queries.tiles(blocks.queries), queries.positions)](
        q, *rel_h[:2], *rel_w[:2], logits, *queries, constants, blocks.queries, **blocks.options
    )
    return logits


def logits_backward(
    grad_logits: Tensor,
    q: Tensor,
    rel_h: AxisTable,
    rel_w: AxisTable,
    grad_q: Tensor,
    shape: AttentionShape,
) -> tuple[Tensor, Tensor]:
    """Gradients of both tables; adds to ``grad_q`` what comes through the logits of columns.

    ``grad_q`` is (B, H, W, C) contiguous, and already has what comes through the logits of rows.
    Per axis this reads the gradients of the axis' logits and q, and writes a float32
    (Q_a, K_a, d) for each program of a position; these are added in fixed order. ``grad_q`` is
    read and written once.
    """
    constants, queries = AxisConstants.of(q, shape), Queries.of(q, shape)
    blocks = backward_blocks(q.device, constants.case_of(q))
    tiles = queries.tiles(blocks.queries)
    programs = min(tiles, ceil_div(4 * PROCESSORS, queries.positions))
    places = rel_h.rows.numel() + rel_w.rows.numel()
    partial = q.new_empty(programs, places, constants.channels, dtype=accumulator_dtype(q))
    _logits_backward_kernel[(programs, queries.positions)](
        q, *rel_h[:2], *rel_w[:2], grad_logits, grad_q, partial, *queries,
        ceil_div(tiles, programs), constants, blocks.queries, **blocks.options,
    )  # fmt: skip
    return table_gradients(partial, rel_h, rel_w)


class AxisQueries(NamedTuple):
    """The queries that share a position along an axis ("along"; "across" is the other axis)."""

    count: int
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
    first_column: int  # of the axis among the logits
    columns: int  # of the axis, some of which may be zeros


@triton.jit
def _axis_queries(is_h, queries, CONST: tl.constexpr):
    """The queries of one of the axes."""
    return AxisQueries(
        tl.where(is_h, queries.count_h, queries.count_w),
        tl.where(is_h, queries.height, queries.width),
        tl.where(is_h, queries.width, queries.height),
        tl.where(is_h, queries.rows, queries.columns),
        tl.where(is_h, queries.key_rows, queries.key_columns),
        queries.heads,
        queries.height * queries.width,
        queries.q_b,
        tl.where(is_h, queries.q_y, queries.q_x),
        tl.where(is_h, queries.q_x, queries.q_y),
        tl.where(is_h, queries.width, 1),
        tl.where(is_h, 1, queries.width),
        tl.where(is_h, 0, queries.second),
        tl.where(is_h, queries.second, CONST.terms - queries.second),
    )


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
def _load_rel(table, rows, position, keys, CONST: tl.constexpr):
    """(padded columns, D): R of a position, padded with zeros."""
    key, channel = tl.arange(0, CONST.padded_columns), tl.arange(0, CONST.d)[None, :]
    row = tl.load(rows + position * keys + key, mask=key < keys, other=0)[:, None]
    mask = (key < keys)[:, None] & (channel < CONST.channels)
    return tl.load(table + row * CONST.channels + channel, mask=mask, other=0.0).to(CONST.operand)


@triton.jit(do_not_specialize=_UNSPECIALISED)
def _logits_forward_kernel(
    q, table_h, rows_h, table_w, rows_w, logits, count_h, count_w, height, width, rows, columns,
    key_rows, key_columns, heads, second, q_b, q_y, q_x,
    CONST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Logits of a block of the queries at one position along one axis."""
    both = Queries(
        count_h, count_w, height, width, rows, columns, key_rows, key_columns, heads, second,
        q_b, q_y, q_x,
    )  # fmt: skip
    position = tl.program_id(1)
    is_h = position < rows
    position = tl.where(is_h, position, position - rows)
    queries = _axis_queries(is_h, both, CONST)
    image, y, x, head, inside = _places(tl.program_id(0) * BLOCK, position, queries, BLOCK)
    channel, column = tl.arange(0, CONST.d)[None, :], tl.arange(0, CONST.padded_columns)[None, :]
    at = image * queries.q_b + y * queries.q_along + x * queries.q_across + head * CONST.channels
    mask = inside[:, None] & (channel < CONST.channels)
    block = tl.load(q + at[:, None] + channel, mask=mask, other=0.0)
    table, own = tl.where(is_h, table_h, table_w), tl.where(is_h, rows_h, rows_w)
    embeddings = tl.trans(_load_rel(table, own, position, queries.keys, CONST))
    empty = zeros(BLOCK, CONST.padded_columns, CONST.accumulator)
    found = product(block, embeddings, empty, CONST.operand)
    place = y * queries.token_along + x * queries.token_across
    token = (image * heads + head) * queries.tokens + place
    tl.store(
        logits + (token * CONST.terms + queries.first_column)[:, None] + column,
        found.to(logits.dtype.element_ty),
        mask=inside[:, None] & (column < queries.columns),
    )


@triton.jit(do_not_specialize=[*_UNSPECIALISED, "tiles_per_program"])
def _logits_backward_kernel(
    q, table_h, rows_h, table_w, rows_w, grad_logits, grad_q, grad_rel, count_h, count_w, height,
    width, rows, columns, key_rows, key_columns, heads, second, q_b, q_y, q_x, tiles_per_program,
    CONST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program's part of the gradient of R at one position along one axis.

    What comes through the logits of columns is added to ``grad_q``.
    """
    both = Queries(
        count_h, count_w, height, width, rows, columns, key_rows, key_columns, heads, second,
        q_b, q_y, q_x,
    )  # fmt: skip
    program, position = tl.program_id(0), tl.program_id(1)
    is_h = position < rows
    position = tl.where(is_h, position, position - rows)
    queries = _axis_queries(is_h, both, CONST)
    channel, column = tl.arange(0, CONST.d)[None, :], tl.arange(0, CONST.padded_columns)[None, :]
    table, own = tl.where(is_h, table_h, table_w), tl.where(is_h, rows_h, rows_w)
    embeddings = _load_rel(table, own, position, queries.keys, CONST)
    total = zeros(CONST.padded_columns, CONST.d, CONST.accumulator)
    for tile in range(program * tiles_per_program, (program + 1) * tiles_per_program):
        image, y, x, head, inside = _places(tile * BLOCK, position, queries, BLOCK)
        mask = inside[:, None] & (channel < CONST.channels)
        at = image * q_b + y * queries.q_along + x * queries.q_across + head * CONST.channels
        block = tl.load(q + at[:, None] + channel, mask=mask, other=0.0)
        place = y * queries.token_along + x * queries.token_across
        token = (image * heads + head) * queries.tokens + place
        grad = tl.load(
            grad_logits + (token * CONST.terms + queries.first_column)[:, None] + column,
            mask=inside[:, None] & (column < queries.columns),
            other=0.0,
        )
        if not is_h:
            pixel = (image * queries.tokens + place) * heads + head
            target = grad_q + pixel[:, None] * CONST.channels + channel
            before = tl.load(target, mask=mask, other=0.0).to(CONST.accumulator)
            empty = zeros(BLOCK, CONST.d, CONST.accumulator)
            after = before + product(grad, embeddings, empty, CONST.operand)
            tl.store(target, after.to(grad_q.dtype.element_ty), mask=mask)
        total = product(tl.trans(grad), block, total, CONST.operand)
    key = tl.arange(0, CONST.padded_columns)[:, None]
    places = rows * key_rows + columns * key_columns
    first = tl.where(is_h, 0, rows * key_rows) + position * queries.keys
    at = (program.to(tl.int64) * places + first + key) * CONST.channels
    mask = (key < queries.keys) & (channel < CONST.channels)
    tl.store(grad_rel + at + channel, total, mask=mask)
