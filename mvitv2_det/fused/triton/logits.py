"""What extends queries and keys: position logits of Eq. 4 and codes of places; and backward.

Position logits are each query times R of its row, and R of its column. Queries at the same row (or
column) of their windows share R, so that one product per row gives the logits of all of them.
Logits are computed once per query and hold K_h + K_w numbers, never one per query and key. The
launch that computes them also packs keys and values by windows: see ``attention_tiles``.

Axes: B images, h heads, H × W queries, d channels of a head padded to D, Q_a queries and K_a keys
along axis a of a window, T terms. All queries at one position along the axis of their windows, of
all windows, images and heads, share one R (K_a, d): a kernel has programs for each of the Q_a
positions, and goes through their queries in blocks. One launch serves both axes: the positions of
height come first.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .attention_arguments import AttentionConstants, Windows
from .attention_tiles import key_places, product, rows_of, zeros
from .axis_tables import AxisTable, table_gradients
from .launch import PROCESSORS, Blocks, Map, accumulator_dtype, ceil_div, power_of_2
from .tile_table import Case, measured_or

_KEYS = 16  # that a program packs
# The second axis' terms are read in 16 bytes where they start at a multiple.
_UNSPECIALISED = [name for name in Windows._fields if name != "second"]


@measured_or("extend")
def extend_blocks(case: Case) -> Blocks:
    """Blocks of queries of the forward kernel, of which several programs share a processor.

    Compiled for sm_90, it takes 130 registers a thread or fewer. float32 has no tensor cores at
    full precision, and its products are unrolled.
    """
    if case.dtype.itemsize > 2:
        return Blocks(queries=16, keys=0, warps=8, stages=1)
    return Blocks(queries=64, keys=0, warps=8, stages=1)


@measured_or("logits_backward")
def backward_blocks(case: Case) -> Blocks:
    """Blocks of queries of the backward kernel.

    Compiled for sm_90, it takes 118 registers a thread for windows of 14 × 14 keys, and up to 255
    for whole maps of 25 × 34.
    """
    if case.dtype.itemsize > 2:
        return Blocks(queries=16, keys=0, warps=8, stages=1)
    return Blocks(queries=32, keys=0, warps=4 if case.terms <= 64 else 8, stages=2)


def extend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: AxisTable | None,
    rel_w: AxisTable | None,
    windows: Windows,
    constants: AttentionConstants,
) -> tuple[Tensor | None, Tensor]:
    """Computes the terms of queries, and packs keys with their values.

    Reads q twice (the second time from the L2 cache, as a rule) and both R, k and v; writes
    B·h·H·W·T numbers, and those of the packed keys.

    Args:
        q: (B, H, W, C), unscaled; channels contiguous.
        k, v: (B, Hk, Wk, C).
        rel_h, rel_w: R, (Q_a, K_a, d); or both None.

    Returns:
        (B, h, H, W, T), None without positions, and (B, h, windows, packed keys, columns of the
        extended key and its value), in q's dtype.
    """
    count = windows.down * windows.across
    packed = q.new_empty(len(q), windows.heads, count, windows.packed, constants.row)
    key_blocks = ceil_div(packed[..., 0].numel(), _KEYS)
    blocks = extend_blocks(q.device, Case(q.dtype, constants.channels, constants.axis_terms))
    if rel_h is None or rel_w is None:
        terms, positions, tiles, tables = None, 0, key_blocks, (None,) * 4
    else:
        terms = q.new_empty(len(q), windows.heads, *q.shape[1:3], constants.terms)
        positions, tiles = windows.rows + windows.columns, _tiles(windows, blocks)
        tables = *rel_h[:2], *rel_w[:2]
    packing = ceil_div(key_blocks, tiles)
    _extend_kernel[(tiles, packing + positions)](
        Map.of(q), Map.of(k), Map.of(v), *tables, terms, packed, *windows, packing, constants,
        blocks.queries, _KEYS, power_of_2(constants.row), **blocks.options,
    )  # fmt: skip
    return terms, packed


def logits_backward(
    grad_terms: Tensor,
    q: Tensor,
    rel_h: AxisTable,
    rel_w: AxisTable,
    grad_q: Tensor,
    windows: Windows,
    constants: AttentionConstants,
) -> tuple[Tensor, Tensor]:
    """Gradients of both tables; adds to ``grad_q`` what comes through the logits of columns.

    ``grad_q`` is (B, H, W, C) contiguous, and already has what comes through the logits of rows.
    Per axis this reads the gradients of the axis' logits and q, and writes a float32
    (Q_a, K_a, d) for each program of a position; these are added in fixed order. ``grad_q`` is
    read and written once.
    """
    blocks = backward_blocks(q.device, Case(q.dtype, constants.channels, constants.axis_terms))
    tiles, positions = _tiles(windows, blocks), windows.rows + windows.columns
    programs = min(tiles, ceil_div(4 * PROCESSORS, positions))
    places = rel_h.rows.numel() + rel_w.rows.numel()
    partial = q.new_empty(programs, places, constants.channels, dtype=accumulator_dtype(q))
    _logits_backward_kernel[(programs, positions)](
        Map.of(q), *rel_h[:2], *rel_w[:2], grad_terms, Map.of(grad_q), partial, *windows,
        ceil_div(tiles, programs), constants, blocks.queries, **blocks.options,
    )  # fmt: skip
    return table_gradients(partial, rel_h, rel_w)


def _tiles(windows: Windows, blocks: Blocks) -> int:
    """Blocks of queries at a position of the axis that has more."""
    lines = max(windows.down * windows.width, windows.across * windows.height)
    return ceil_div(windows.images * windows.heads * lines, blocks.queries)


class AxisQueries(NamedTuple):
    """The queries that share a position along an axis ("along"; "across" is the other axis)."""

    count: int
    along: int  # size of the map
    across: int
    window: int  # Q_a
    keys: int  # K_a
    first_term: int
    terms: int  # of the axis, some of which may be zeros


@triton.jit
def _axis_queries(is_h, windows, CONST: tl.constexpr):
    """The queries of one of the axes."""
    lines = tl.where(is_h, windows.down * windows.width, windows.across * windows.height)
    return AxisQueries(
        windows.images * windows.heads * lines,
        tl.where(is_h, windows.height, windows.width),
        tl.where(is_h, windows.width, windows.height),
        tl.where(is_h, windows.rows, windows.columns),
        tl.where(is_h, windows.key_rows, windows.key_columns),
        tl.where(is_h, 0, windows.second),
        tl.where(is_h, windows.second, CONST.terms - windows.second),
    )


@triton.jit
def _places(start, position, is_h, queries, heads, BLOCK: tl.constexpr):
    """Image, head, row and column of queries on the map, and whether each exists.

    Heads are counted the fastest: they lie side by side in memory.
    """
    places = start + tl.arange(0, BLOCK)
    across = places // heads % queries.across
    window = places // heads // queries.across
    windows = tl.cdiv(queries.along, queries.window)
    along = window % windows * queries.window + position
    inside = (places < queries.count) & (along < queries.along)
    y, x = tl.where(is_h, along, across), tl.where(is_h, across, along)
    return (window // windows).to(tl.int64), places % heads, y, x, inside


@triton.jit
def _load_rel(table, rows, position, keys, CONST: tl.constexpr):
    """(padded columns, D): R of a position, padded with zeros."""
    key, channel = tl.arange(0, CONST.axis_terms), tl.arange(0, CONST.d)[None, :]
    row = tl.load(rows + position * keys + key, mask=key < keys, other=0)[:, None]
    mask = (key < keys)[:, None] & (channel < CONST.channels)
    return tl.load(table + row * CONST.channels + channel, mask=mask, other=0.0).to(CONST.operand)


@triton.jit
def _pack(k, v, packed_keys, block, windows, CONST: tl.constexpr, KEYS: tl.constexpr,
          COLUMNS: tl.constexpr):  # fmt: skip
    """Packs a block of the keys of all windows, heads and images."""
    places = block * KEYS + tl.arange(0, KEYS)
    count = windows.down * windows.across
    window, plane = places // windows.packed % count, places // windows.packed // count
    y, x, row, column, on_map, seen = key_places(window, places % windows.packed, windows)
    if CONST.masked:
        seen = on_map
    exists = plane < windows.images * windows.heads
    image, head = (plane // windows.heads).to(tl.int64), plane % windows.heads
    k_rows = rows_of(k, image, head, y, x, CONST)
    v_rows = rows_of(v, image, head, y, x, CONST)
    at = tl.arange(0, COLUMNS)[None, :]
    term = at - CONST.channels
    is_key = term < CONST.terms
    channel = tl.where(is_key, at, term - CONST.terms)
    rows = tl.where(is_key, k_rows[:, None], v_rows[:, None])
    mask = (on_map & exists)[:, None] & (channel < CONST.channels)
    packed = tl.load(rows + channel, mask=mask, other=0.0)
    one = tl.where(seen, -1, CONST.terms - 1)[:, None] == term
    if CONST.has_rel:
        is_place = (term == row[:, None]) | (term == column[:, None] + windows.second)
        one = one | (seen[:, None] & is_place)
    packed = tl.where(one & (term >= 0), 1.0, packed.to(CONST.accumulator))
    to = packed_keys + places.to(tl.int64)[:, None] * CONST.row + at
    tl.store(to, packed.to(packed_keys.dtype.element_ty), mask=exists[:, None] & (at < CONST.row))


@triton.jit(do_not_specialize=[*_UNSPECIALISED, "packing"])
def _extend_kernel(
    q, k, v, table_h, rows_h, table_w, rows_w, terms, packed_keys, images, heads, height, width,
    rows, columns, keys_height, keys_width, key_rows, key_columns, down, across, most, packed,
    second, packing,
    CONST: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Terms of a block of the queries at one position along one axis, or a block of packed keys."""
    windows = Windows(
        images, heads, height, width, rows, columns, keys_height, keys_width, key_rows,
        key_columns, down, across, most, packed, second,
    )  # fmt: skip
    position = tl.program_id(1) - packing
    if position < 0:
        index = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        _pack(k, v, packed_keys, index, windows, CONST, KEYS, COLUMNS)
        return
    if CONST.has_rel:
        is_h = position < rows
        position = tl.where(is_h, position, position - rows)
        queries = _axis_queries(is_h, windows, CONST)
        start = tl.program_id(0) * BLOCK
        image, head, y, x, inside = _places(start, position, is_h, queries, heads, BLOCK)
        channel, column = tl.arange(0, CONST.d)[None, :], tl.arange(0, CONST.axis_terms)[None, :]
        mask = inside[:, None] & (channel < CONST.channels)
        q_rows = rows_of(q, image, head, y, x, CONST)
        block = tl.load(q_rows[:, None] + channel, mask=mask, other=0.0)
        table, own = tl.where(is_h, table_h, table_w), tl.where(is_h, rows_h, rows_w)
        embeddings = tl.trans(_load_rel(table, own, position, queries.keys, CONST))
        empty = zeros(BLOCK, CONST.axis_terms, CONST.accumulator)
        # The attention kernel scales the scores.
        found = product(block, embeddings, empty, CONST.operand) / CONST.scale
        term = queries.first_term + column
        found = tl.where(term == CONST.terms - 1, CONST.hidden, found)
        token = (image * heads + head) * height * width + (y * width + x)
        tl.store(
            terms + token[:, None] * CONST.terms + term,
            found.to(terms.dtype.element_ty),
            mask=inside[:, None] & (column < queries.terms),
        )


@triton.jit(do_not_specialize=[*_UNSPECIALISED, "tiles_per_program"])
def _logits_backward_kernel(
    q, table_h, rows_h, table_w, rows_w, grad_terms, grad_q, grad_rel, images, heads, height, width,
    rows, columns, keys_height, keys_width, key_rows, key_columns, down, across, most, packed,
    second, tiles_per_program, CONST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program's part of the gradient of R at one position along one axis.

    What comes through the logits of columns is added to ``grad_q``.
    """
    windows = Windows(
        images, heads, height, width, rows, columns, keys_height, keys_width, key_rows,
        key_columns, down, across, most, packed, second,
    )  # fmt: skip
    program, position = tl.program_id(0), tl.program_id(1)
    is_h = position < rows
    position = tl.where(is_h, position, position - rows)
    queries = _axis_queries(is_h, windows, CONST)
    channel, column = tl.arange(0, CONST.d)[None, :], tl.arange(0, CONST.axis_terms)[None, :]
    table, own = tl.where(is_h, table_h, table_w), tl.where(is_h, rows_h, rows_w)
    embeddings = _load_rel(table, own, position, queries.keys, CONST)
    total = zeros(CONST.axis_terms, CONST.d, CONST.accumulator)
    for tile in range(program * tiles_per_program, (program + 1) * tiles_per_program):
        image, head, y, x, inside = _places(tile * BLOCK, position, is_h, queries, heads, BLOCK)
        mask = inside[:, None] & (channel < CONST.channels)
        q_rows = rows_of(q, image, head, y, x, CONST)
        block = tl.load(q_rows[:, None] + channel, mask=mask, other=0.0)
        token = (image * heads + head) * height * width + (y * width + x)
        grad = tl.load(
            grad_terms + (token * CONST.terms + queries.first_term)[:, None] + column,
            mask=inside[:, None] & (column < queries.terms),
            other=0.0,
        )
        if not is_h:
            target = rows_of(grad_q, image, head, y, x, CONST)[:, None] + channel
            before = tl.load(target, mask=mask, other=0.0).to(CONST.accumulator)
            empty = zeros(BLOCK, CONST.d, CONST.accumulator)
            after = before + product(grad, embeddings, empty, CONST.operand)
            tl.store(target, after.to(block.dtype), mask=mask)
        total = product(tl.trans(grad), block, total, CONST.operand)
    key = tl.arange(0, CONST.axis_terms)[:, None]
    places = rows * key_rows + columns * key_columns
    first = tl.where(is_h, 0, rows * key_rows) + position * queries.keys
    at = (program.to(tl.int64) * places + first + key) * CONST.channels
    mask = (key < queries.keys) & (channel < CONST.channels)
    tl.store(grad_rel + at + channel, total, mask=mask)
