"""Pooled attention, backward: weights are computed again from the log-sum-exp, tile by tile.

Two kernels go over queries × keys: one sums over keys (for queries and their terms), one over
queries (for k and v). No atomics: where one program per block of keys would leave processors
idle, queries are split over more programs, and their partial sums are added in fixed order.

Axes: B images, Hq × Wq queries and Hk × Wk keys of a map, C = h·d channels of h heads, M queries
and N keys of a block, T terms (``attention_tiles``).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shape import AttentionShape
from .attention_arguments import (
    AttentionConstants,
    Windows,
    case_of,
    check,
    query_grid,
)
from .attention_tiles import (
    added,
    in_base_2,
    key_places,
    load_packed,
    load_queries,
    load_tile,
    product,
    product_over_columns,
    product_over_places,
    query_count,
    query_places,
    rows_of,
    scaled,
    scaled_channels,
    store_tile,
    window_start,
    zero_tile,
    zeros,
)
from .axis_tables import AxisTable
from .launch import PROCESSORS, Blocks, Map, accumulator_dtype, ceil_div
from .logits import extend, logits_backward
from .sums import row_sums
from .tile_table import Case, measured_or

_MAX_SPLITS = 32  # of the queries of a window: bounds the partial sums' memory


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: AxisTable | None,
    rel_w: AxisTable | None,
    out: Tensor,
    lse: Tensor,
    shape: AttentionShape,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of :func:`.attention_forward.attention_forward`.

    Terms and packed keys are made again rather than saved.

    Bytes, e of an element, A = B·Hq·Wq·C, P = B·h·Hq·Wq, K = B·Hk·Wk·C, s splits
    (:func:`query_splits`), beside what :func:`.logits.extend` moves: sums over keys read
    (3 + residual)·A·e + P·T·e + 4·P and write A·e + P·T·e + 4·P; sums over queries read
    2·A·e + P·T·e + 8·P for each block of a window's keys (from the L2 cache after the first) and
    write 2·K·e, or with splits 8·s·K written and read again; the position logits' backward reads
    3·A·e + P·T·e and writes A·e.

    Args:
        grad: of the output, (B, Hq, Wq, C).
        q, k, v, rel_h, rel_w, shape: what the forward pass took.
        out, lse: what it returned, contiguous.

    Returns:
        the gradients of q (the residual's included), k, v, and the tables of rel_h and rel_w,
        all contiguous and of the dtype of what they belong to; None for tables that are None.

    Raises:
        ValueError: sizes, windows, dtypes or strides do not fit together.
    """
    check(q, k, v, rel_h, rel_w, shape)
    grad = grad if grad.stride(3) == 1 else grad.contiguous()
    constants = AttentionConstants.of(q, shape, has_rel=rel_h is not None)
    case = case_of(q, constants, shape)
    over_keys, over_queries = query_blocks(q.device, case), key_blocks(q.device, case)
    windows = Windows.of(q, k, shape, max(over_keys.keys, over_queries.keys))
    terms, packed = extend(q, k, v, rel_h, rel_w, windows, constants)
    # Of the gradient of q all but what comes through the logits of columns.
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grad_terms = None if terms is None else torch.empty_like(terms)
    sums = lse.new_empty(2, len(q), shape.heads, windows.down * windows.across, windows.most)
    _over_keys_kernel[query_grid(windows, over_keys)](
        Map.of(q), Map.of(grad), terms, packed, *((None, None) if rel_h is None else rel_h[:2]),
        Map.of(out), lse, Map.of(grad_q), grad_terms, *sums, *windows, constants,
        over_keys.queries, over_keys.keys, **over_keys.options,
    )  # fmt: skip
    tiles, count, planes = query_grid(windows, over_queries)
    key_tiles = ceil_div(shape.window_kv[0] * shape.window_kv[1], over_queries.keys)
    splits = query_splits(key_tiles * count * planes, tiles)
    dtype = q.dtype if splits == 1 else accumulator_dtype(q)
    grads = torch.empty((2, splits, *k.shape), dtype=dtype, device=k.device)
    _over_queries_kernel[(key_tiles * splits, count, planes)](
        Map.of(q), Map.of(grad), terms, packed, *sums, *map(Map.of, grads.flatten(1, 2)), *windows,
        key_tiles, ceil_div(tiles, splits) * over_queries.queries, constants.of_products(),
        over_queries.queries, over_queries.keys, **over_queries.options,
    )  # fmt: skip
    if splits == 1:
        grad_k, grad_v = grads[:, 0]
    else:
        summed = row_sums(list(grads.flatten(2)), q.dtype)
        grad_k, grad_v = (total.view(k.shape) for total in summed)
    if rel_h is None or rel_w is None or grad_terms is None:
        return grad_q, grad_k, grad_v, None, None
    grad_h, grad_w = logits_backward(grad_terms, q, rel_h, rel_w, grad_q, windows, constants)
    return grad_q, grad_k, grad_v, grad_h, grad_w


@measured_or("attention_over_keys")
def query_blocks(case: Case) -> Blocks:
    """Blocks of the kernel that sums over keys, for T terms.

    Two programs of four warps share a processor, with 255 registers a thread: for d = 96 none
    are spilled with T <= 32, 8 bytes with T = 64. More terms, of large images, take more registers
    than that, and so more warps (compiled for sm_90).
    """
    if case.dtype.itemsize > 2:
        return Blocks(queries=32, keys=32, warps=8, stages=1)
    if case.terms > 64:
        return Blocks(queries=64, keys=32, warps=8, stages=2)
    return Blocks(queries=64, keys=64, warps=4, stages=2)


@measured_or("attention_over_queries")
def key_blocks(case: Case) -> Blocks:
    """Blocks of the kernel that sums over queries, for the keys of a window and T.

    Queries are read again for each block of keys, so that the blocks are large where there are
    many keys. No spills with d = 96 (compiled for sm_90); with many terms only
    small blocks fit into shared memory.
    """
    if case.dtype.itemsize > 2:
        return Blocks(queries=32, keys=32, warps=8, stages=1)
    if case.terms > 128:
        return Blocks(queries=32, keys=64, warps=4, stages=2)
    if case.few_keys:
        return Blocks(queries=64, keys=64, warps=4, stages=2)
    return Blocks(queries=64, keys=128, warps=8, stages=2)


def query_splits(programs: int, tiles: int) -> int:
    """Number of programs that share a window's queries where sums are over queries.

    More than one where there would be too few programs to fill the processors twice; at most
    one for each block of queries.

    Args:
        programs: blocks of keys in all windows, heads and images.
        tiles: blocks of queries of a window.
    """
    return max(min(2 * PROCESSORS // programs, tiles, _MAX_SPLITS), 1)


@triton.jit
def _inner(a, b, CONST: tl.constexpr, TILES: tl.constexpr):
    """Σ a·b over the channels of two tiles."""
    total = tl.sum(a[0].to(CONST.accumulator) * b[0].to(CONST.accumulator), 1)
    if TILES.rest > 0:
        total += tl.sum(a[1].to(CONST.accumulator) * b[1].to(CONST.accumulator), 1)
    return total


@triton.jit(do_not_specialize=Windows._fields)
def _over_keys_kernel(
    q, grad, terms, packed_keys, table_h, rows_h, out, lse, grad_q, grad_terms, peaks,
    deltas, images, heads, height, width, rows, columns, keys_height, keys_width, key_rows,
    key_columns, down, across, most, packed, second,
    CONST: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Sums over a window's keys for a block of its queries, of one head and image."""
    windows = Windows(
        images, heads, height, width, rows, columns, keys_height, keys_width, key_rows,
        key_columns, down, across, most, packed, second,
    )  # fmt: skip
    OWN: tl.constexpr = CONST.own
    EXTENDED: tl.constexpr = CONST.extended
    start, window, plane = tl.program_id(0) * M, tl.program_id(1), tl.program_id(2)
    if start >= query_count(window, windows):
        return
    image, head = (plane // heads).to(tl.int64), plane % heads
    y, x, inside = query_places(window, start, windows, M)
    tokens = plane.to(tl.int64) * height * width + y * width + x
    q_rows = rows_of(q, image, head, y, x, CONST)
    g_rows = rows_of(grad, image, head, y, x, CONST)
    grads = load_tile(g_rows, inside, CONST, OWN)
    attended = load_tile(rows_of(out, image, head, y, x, CONST), inside, CONST, OWN)
    if CONST.residual:  # what was attended is the output without q
        own = load_tile(q_rows, inside, CONST, OWN)
        negative = scaled(added(zero_tile(M, CONST, OWN), own, CONST), -1.0)
        attended = added(negative, attended, CONST)
    mean_grad = _inner(attended, grads, CONST, OWN)
    peak = tl.load(lse + tokens, mask=inside, other=0.0)
    at = ((plane * down * across + window).to(tl.int64) * most + start) + tl.arange(0, M)
    tl.store(peaks + at, peak, mask=inside)
    tl.store(deltas + at, mean_grad, mask=inside)
    queries = load_queries(q_rows, terms, tokens, inside, CONST)
    keys_start = window_start(packed_keys, plane, window, windows, CONST)
    grad_queries = zero_tile(M, CONST, EXTENDED)
    for _ in range(0, key_rows * key_columns, N):
        keys = load_packed(keys_start, N, CONST, EXTENDED)
        scores = product_over_columns(queries, keys, CONST, EXTENDED)
        weights = tl.exp2(in_base_2(scores, CONST) - peak[:, None])
        values = load_packed(keys_start + (CONST.channels + CONST.terms), N, CONST, OWN)
        grad_weights = product_over_columns(grads, values, CONST, OWN)
        grad_scores = weights * (grad_weights - mean_grad[:, None])
        grad_scores = grad_scores.to(q.start.dtype.element_ty)
        grad_queries = product_over_places(grad_scores, keys, grad_queries, CONST, EXTENDED)
        keys_start += N * CONST.row
    grad_queries = scaled_channels(grad_queries, CONST)
    if CONST.has_rel:
        _store_terms(grad_terms + tokens * CONST.terms, grad_queries, inside, CONST)
        row = y - window // across * rows
        grad_queries = _add_row_logits(
            grad_queries, table_h, rows_h, row, start, window, windows, CONST, M
        )
    if CONST.residual:
        grads = load_tile(g_rows, inside, CONST, EXTENDED)
        grad_queries = added(grad_queries, grads, CONST)
    store_tile(rows_of(grad_q, image, head, y, x, CONST), grad_queries, inside, CONST, EXTENDED)


@triton.jit
def _store_terms(to, tile, inside, CONST: tl.constexpr):
    """Stores the terms of a tile at (places) pointers."""
    FIRST: tl.constexpr = CONST.extended.first
    REST: tl.constexpr = CONST.extended.rest
    term = tl.arange(0, FIRST)[None, :] - CONST.channels
    tl.store(to[:, None] + term, tile[0].to(to.dtype.element_ty), inside[:, None] & (term >= 0))
    if REST > 0:
        term = FIRST + tl.arange(0, REST)[None, :] - CONST.channels
        tl.store(to[:, None] + term, tile[1].to(to.dtype.element_ty), inside[:, None] & (term >= 0))


@triton.jit
def _add_row_logits(
    grad_queries, table_h, rows_h, row, start, window, windows, CONST: tl.constexpr,
    M: tl.constexpr,
):  # fmt: skip
    """Adds what a block's queries, at ``row`` of their window, get through the logits of rows."""
    EXTENDED: tl.constexpr = CONST.extended
    # So many at once: more do not fit into shared memory.
    TERMS: tl.constexpr = CONST.axis_terms if CONST.axis_terms < 64 else 64
    left = window % windows.across * windows.columns
    columns = tl.minimum(windows.columns, windows.width - left)
    end = tl.minimum((start + M - 1) // columns + 1, windows.rows)
    for first in range(0, windows.key_rows, TERMS):
        term = first + tl.arange(0, TERMS)
        known = term < windows.key_rows
        grad_terms = _terms_of(grad_queries, term, M, TERMS, CONST)
        for near in range(start // columns, end):
            place = tl.load(rows_h + near * windows.key_rows + term, mask=known, other=0)
            rel = load_tile(table_h + place * CONST.channels, known, CONST, EXTENDED)
            of_row = tl.where((row == near)[:, None], grad_terms, 0.0)
            grad_queries = product_over_places(of_row, rel, grad_queries, CONST, EXTENDED)
    return grad_queries


@triton.jit
def _terms_of(tile, term, M: tl.constexpr, TERMS: tl.constexpr, CONST: tl.constexpr):
    """(M, TERMS) some terms of a tile, by an exact product: Triton cannot cut columns out."""
    FIRST: tl.constexpr = CONST.extended.first
    REST: tl.constexpr = CONST.extended.rest
    wanted = CONST.channels + term[None, :]
    chosen = (tl.arange(0, FIRST)[:, None] == wanted).to(CONST.operand)
    found = product(tile[0], chosen, zeros(M, TERMS, CONST.accumulator), CONST.operand)
    if REST > 0:
        chosen = (FIRST + tl.arange(0, REST)[:, None] == wanted).to(CONST.operand)
        found = product(tile[1], chosen, found, CONST.operand)
    return found


@triton.jit(do_not_specialize=[*Windows._fields, "key_tiles", "queries_per_split"])
def _over_queries_kernel(
    q, grad, terms, packed_keys, peaks, deltas, grad_k, grad_v,
    images, heads, height, width, rows, columns, keys_height, keys_width, key_rows, key_columns,
    down, across, most, packed, second, key_tiles, queries_per_split,
    CONST: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Sums over a part of a window's queries for a block of its keys, of one head and image.

    Tiles lie keys × queries, so that weights are the left operand of products without a transpose.
    """
    windows = Windows(
        images, heads, height, width, rows, columns, keys_height, keys_width, key_rows,
        key_columns, down, across, most, packed, second,
    )  # fmt: skip
    OWN: tl.constexpr = CONST.own
    EXTENDED: tl.constexpr = CONST.extended
    split, window, plane = tl.program_id(0) // key_tiles, tl.program_id(1), tl.program_id(2)
    image, head = (plane // heads).to(tl.int64), plane % heads
    key = tl.program_id(0) % key_tiles * N
    keys_start = window_start(packed_keys, plane, window, windows, CONST) + key * CONST.row
    keys = load_packed(keys_start, N, CONST, EXTENDED)
    values = load_packed(keys_start + (CONST.channels + CONST.terms), N, CONST, OWN)
    grad_keys, grad_values = zero_tile(N, CONST, EXTENDED), zero_tile(N, CONST, OWN)
    before = (plane * down * across + window).to(tl.int64) * most
    peaks += before
    deltas += before
    start = split * queries_per_split
    end = tl.minimum(start + queries_per_split, query_count(window, windows))
    for first in range(start, end, M):
        y, x, inside = query_places(window, first, windows, M)
        tokens = plane.to(tl.int64) * height * width + y * width + x
        q_rows = rows_of(q, image, head, y, x, CONST)
        queries = load_queries(q_rows, terms, tokens, inside, CONST)
        scores = product_over_columns(keys, queries, CONST, EXTENDED)
        # An infinite peak: queries beyond the window weigh nothing.
        at = first + tl.arange(0, M)
        peak = tl.load(peaks + at, mask=at < end, other=float("inf"))
        weights = tl.exp2(in_base_2(scores, CONST) - peak[None, :])
        grads = load_tile(rows_of(grad, image, head, y, x, CONST), inside, CONST, OWN)
        rounded = weights.to(q.start.dtype.element_ty)
        grad_values = product_over_places(rounded, grads, grad_values, CONST, OWN)
        grad_weights = product_over_columns(values, grads, CONST, OWN)
        mean_grad = tl.load(deltas + at, mask=at < end, other=0.0)
        grad_scores = weights * (grad_weights - mean_grad[None, :])
        grad_scores = grad_scores.to(q.start.dtype.element_ty)
        grad_keys = product_over_places(grad_scores, queries, grad_keys, CONST, EXTENDED)
    y, x, _, _, on_map, _ = key_places(window, key + tl.arange(0, N), windows)
    image += split * images
    grad_keys = scaled(grad_keys, CONST.scale)
    store_tile(rows_of(grad_k, image, head, y, x, CONST), grad_keys, on_map, CONST, EXTENDED)
    store_tile(rows_of(grad_v, image, head, y, x, CONST), grad_values, on_map, CONST, OWN)
