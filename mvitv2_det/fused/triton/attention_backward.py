"""Pooled attention, backward: weights are computed again from the log-sum-exp, tile by tile.

Two kernels go over queries × keys: one sums over keys (for q and the position logits), one over
queries (for k and v). No atomics: where one program per block of keys would leave processors
idle, queries are split over more programs, and their partial sums are added in fixed order.

Axes: B images, Hq × Wq queries and Hk × Wk keys of a map, C = h·d channels of h heads, M queries
and N keys of a block, T columns of the position logits.
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
    most_queries,
    query_grid,
    window_count,
)
from .attention_tiles import (
    LOG2_E,
    added,
    head_start,
    key_places,
    load_tile,
    one_hot,
    product,
    product_over_channels,
    product_over_places,
    query_count,
    query_places,
    scaled,
    store_tile,
    zero_tile,
    zeros,
)
from .axis_tables import AxisTable
from .launch import PROCESSORS, Blocks, Map, accumulator_dtype, ceil_div
from .logits import logits_backward, logits_forward
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

    Position logits are computed again rather than saved.

    Bytes, e of an element, A = B·Hq·Wq·C, P = B·h·Hq·Wq, K = B·Hk·Wk·C, s splits
    (:func:`query_splits`): sums over keys read 3·A·e + P·T·e + 4·P and write A·e + P·T·e + 4·P;
    sums over queries read 2·A·e + P·T·e + 8·P for each block of a window's keys (from the L2
    cache after the first) and write 2·K·e, or with splits 8·s·K written and read again; the
    position logits' backward reads 3·A·e + P·T·e and writes A·e.

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
    logits = None if rel_h is None or rel_w is None else logits_forward(q, rel_h, rel_w, shape)
    grad_q, grad_logits, delta = _sum_over_keys(grad, q, k, v, logits, rel_h, out, lse, shape)
    grad_k, grad_v = _sum_over_queries(grad, q, k, v, logits, lse, delta, shape)
    if rel_h is None or rel_w is None or grad_logits is None:
        return grad_q, grad_k, grad_v, None, None
    grad_h, grad_w = logits_backward(grad_logits, q, rel_h, rel_w, grad_q, shape)
    return grad_q, grad_k, grad_v, grad_h, grad_w


@measured_or("attention_over_keys")
def query_blocks(case: Case) -> Blocks:
    """Blocks of the kernel that sums over keys, for T columns of position logits.

    Two programs of four warps share a processor, with 255 registers a thread: for d = 96 none
    are spilled with T <= 32, 32 bytes with T = 64. More columns, of large images, take more
    registers than that, and so more warps (compiled for sm_90).
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
    many keys. No spills with d = 96 (compiled for sm_90); with many columns only
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


def _sum_over_keys(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logits: Tensor | None,
    rel_h: AxisTable | None,
    out: Tensor,
    lse: Tensor,
    shape: AttentionShape,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of q and of the position logits, and Σ grad·attended of each query.

    The gradient of q lacks what comes through the logits of columns. What comes through the
    logits of rows is added here, since a block of queries spans few rows.
    """
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grad_logits = None if logits is None else torch.empty_like(logits)
    delta = torch.empty_like(lse)
    constants = AttentionConstants.of(q, shape, has_rel=logits is not None)
    blocks = query_blocks(q.device, case_of(q, constants, shape))
    _over_keys_kernel[query_grid(q, shape, blocks)](
        Map.of(q),
        Map.of(k),
        Map.of(v),
        Map.of(grad),
        logits,
        *((None, None) if rel_h is None else rel_h[:2]),
        out,
        lse,
        grad_q,
        grad_logits,
        delta,
        *Windows.of(q, k, shape),
        constants,
        blocks.queries,
        blocks.keys,
        **blocks.options,
    )
    return grad_q, grad_logits, delta


def _sum_over_queries(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logits: Tensor | None,
    lse: Tensor,
    delta: Tensor,
    shape: AttentionShape,
) -> tuple[Tensor, Tensor]:
    """Gradients of k and v."""
    keys = shape.window_kv[0] * shape.window_kv[1]
    constants = AttentionConstants.of(q, shape, has_rel=logits is not None)
    blocks = key_blocks(q.device, case_of(q, constants, shape))
    windows, planes = window_count(q, shape), len(q) * shape.heads
    tiles = ceil_div(most_queries(q, shape), blocks.queries)
    key_tiles = ceil_div(keys, blocks.keys)
    splits = query_splits(key_tiles * windows * planes, tiles)
    dtype = q.dtype if splits == 1 else accumulator_dtype(q)
    grads = torch.empty((2, splits, *k.shape), dtype=dtype, device=k.device)
    _over_queries_kernel[(key_tiles * splits, windows, planes)](
        Map.of(q),
        Map.of(k),
        Map.of(v),
        Map.of(grad),
        logits,
        lse,
        delta,
        grads[0],
        grads[1],
        *Windows.of(q, k, shape),
        key_tiles,
        ceil_div(tiles, splits) * blocks.queries,
        constants,
        blocks.queries,
        blocks.keys,
        **blocks.options,
    )
    if splits == 1:
        return grads[0, 0], grads[1, 0]
    grad_k, grad_v = (total.view(k.shape) for total in row_sums(list(grads.flatten(2)), q.dtype))
    return grad_k, grad_v


@triton.jit
def _mean_grad(out, queries, grads, CONST: tl.constexpr):
    """Σ grad·attended over channels; what was attended is the output without the residual."""
    total = _inner(out[0], queries[0], grads[0], CONST)
    if CONST.rest > 0:
        total += _inner(out[1], queries[1], grads[1], CONST)
    return total


@triton.jit
def _inner(out, queries, grads, CONST: tl.constexpr):
    attended = out.to(CONST.accumulator)
    if CONST.residual:
        attended -= queries.to(CONST.accumulator)
    return tl.sum(attended * grads.to(CONST.accumulator), 1)


@triton.jit(do_not_specialize=Windows._fields)
def _over_keys_kernel(
    q, k, v, grad, logits, table_h, rows_h, out, lse, grad_q, grad_logits, delta,
    height, width, rows, columns, keys_height, keys_width,
    key_rows, key_columns, across, heads, second,
    CONST: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Sums over a window's keys for a block of its queries, of one head and image."""
    windows = Windows(
        height, width, rows, columns, keys_height, keys_width, key_rows, key_columns, across,
        heads, second,
    )  # fmt: skip
    start, window, plane = tl.program_id(0) * M, tl.program_id(1), tl.program_id(2)
    if start >= query_count(window, windows):
        return
    image, head = (plane // heads).to(tl.int64), plane % heads
    y, x, inside = query_places(window, start, windows, M)
    q_start, g_start = head_start(q, image, head, CONST), head_start(grad, image, head, CONST)
    queries = load_tile(q_start, y, x, q.stride_y, q.stride_x, inside, CONST)
    grads = load_tile(g_start, y, x, grad.stride_y, grad.stride_x, inside, CONST)
    pixel = heads * CONST.channels
    map_start = image * height * width * pixel + head * CONST.channels
    attended = load_tile(out + map_start, y, x, width * pixel, pixel, inside, CONST)
    mean_grad = _mean_grad(attended, queries, grads, CONST)
    tokens = plane.to(tl.int64) * height * width + y * width + x
    tl.store(delta + tokens, mean_grad, mask=inside)
    peak = tl.load(lse + tokens, mask=inside, other=0.0)
    if CONST.terms > 0:
        term_offsets = tokens[:, None] * CONST.terms + tl.arange(0, CONST.terms)[None, :]
        terms = tl.load(logits + term_offsets, mask=inside[:, None], other=0.0)
        grad_terms = zeros(M, CONST.terms, CONST.accumulator)
    k_start, v_start = head_start(k, image, head, CONST), head_start(v, image, head, CONST)
    grad_queries = zero_tile(M, CONST)
    for key in range(0, windows.key_rows * windows.key_columns, N):
        key_y, key_x, row, column, on_map, seen = key_places(window, key, windows, N)
        keys = load_tile(k_start, key_y, key_x, k.stride_y, k.stride_x, on_map, CONST)
        scores = product_over_channels(queries, keys, CONST)
        scores *= CONST.scale
        if CONST.terms > 0:
            places = one_hot(row, column, second, CONST)
            scores = product(terms, places, scores, CONST.operand)
        if CONST.masked:
            seen = on_map
        weights = tl.exp2(scores * LOG2_E - peak[:, None])
        values = load_tile(v_start, key_y, key_x, v.stride_y, v.stride_x, on_map, CONST)
        grad_weights = product_over_channels(grads, values, CONST)
        grad_scores = weights * (grad_weights - mean_grad[:, None])
        grad_scores = tl.where(seen[None, :], grad_scores, 0.0).to(grad_q.dtype.element_ty)
        grad_queries = product_over_places(grad_scores, keys, grad_queries, CONST)
        if CONST.terms > 0:
            grad_terms = product(grad_scores, tl.trans(places), grad_terms, CONST.operand)
    grad_queries = scaled(grad_queries, CONST.scale)
    if CONST.terms > 0:
        grad_terms = grad_terms.to(grad_logits.dtype.element_ty)
        tl.store(grad_logits + term_offsets, grad_terms, mask=inside[:, None])
        row = y - window // windows.across * windows.rows
        grad_queries = _add_row_logits(
            grad_queries, grad_terms, table_h, rows_h, row, start, window, windows, CONST, M
        )
    if CONST.residual:
        grad_queries = added(grad_queries, grads, CONST)
    store_tile(grad_q + map_start, grad_queries, y, x, width * pixel, pixel, inside, CONST)


@triton.jit
def _add_row_logits(
    grad_queries, grad_terms, table_h, rows_h, row, start, window, windows,
    CONST: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """Adds what a block's queries, at ``row`` of their window, get through the logits of rows."""
    term = tl.arange(0, CONST.terms)
    left = window % windows.across * windows.columns
    columns = tl.minimum(windows.columns, windows.width - left)
    end = tl.minimum((start + M - 1) // columns + 1, windows.rows)
    for near in range(start // columns, end):
        known = term < windows.key_rows
        place = tl.load(rows_h + near * windows.key_rows + term, mask=known, other=0)
        rel = load_tile(table_h, place, place, CONST.channels, 0, known, CONST)
        of_row = tl.where((row == near)[:, None], grad_terms, 0.0).to(grad_terms.dtype)
        grad_queries = product_over_places(of_row, rel, grad_queries, CONST)
    return grad_queries


@triton.jit(do_not_specialize=[*Windows._fields, "key_tiles", "queries_per_split"])
def _over_queries_kernel(
    q, k, v, grad, logits, lse, delta, grad_k, grad_v,
    height, width, rows, columns, keys_height, keys_width,
    key_rows, key_columns, across, heads, second, key_tiles, queries_per_split,
    CONST: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Sums over a part of a window's queries for a block of its keys, of one head and image.

    Tiles lie keys × queries, so that weights are the left operand of products without a transpose.
    """
    windows = Windows(
        height, width, rows, columns, keys_height, keys_width, key_rows, key_columns, across,
        heads, second,
    )  # fmt: skip
    split, window, plane = tl.program_id(0) // key_tiles, tl.program_id(1), tl.program_id(2)
    image, head = (plane // heads).to(tl.int64), plane % heads
    key = tl.program_id(0) % key_tiles * N
    key_y, key_x, row, column, on_map, _ = key_places(window, key, windows, N)
    # Weights of keys beyond the map are computed too, and not stored.
    k_start, v_start = head_start(k, image, head, CONST), head_start(v, image, head, CONST)
    keys = load_tile(k_start, key_y, key_x, k.stride_y, k.stride_x, on_map, CONST)
    values = load_tile(v_start, key_y, key_x, v.stride_y, v.stride_x, on_map, CONST)
    if CONST.terms > 0:
        places = tl.trans(one_hot(row, column, second, CONST))
    q_start, g_start = head_start(q, image, head, CONST), head_start(grad, image, head, CONST)
    grad_keys, grad_values = zero_tile(N, CONST), zero_tile(N, CONST)
    start = split * queries_per_split
    end = tl.minimum(start + queries_per_split, query_count(window, windows))
    for first in range(start, end, M):
        y, x, inside = query_places(window, first, windows, M)
        queries = load_tile(q_start, y, x, q.stride_y, q.stride_x, inside, CONST)
        tokens = plane.to(tl.int64) * height * width + y * width + x
        scores = product_over_channels(keys, queries, CONST)
        scores *= CONST.scale
        if CONST.terms > 0:
            term_offsets = tokens[:, None] * CONST.terms + tl.arange(0, CONST.terms)[None, :]
            terms = tl.load(logits + term_offsets, mask=inside[:, None], other=0.0)
            scores = product(places, tl.trans(terms), scores, CONST.operand)
        # An infinite peak: queries beyond the window weigh nothing.
        peak = tl.load(lse + tokens, mask=inside, other=float("inf"))
        weights = tl.exp2(scores * LOG2_E - peak[None, :])
        grads = load_tile(g_start, y, x, grad.stride_y, grad.stride_x, inside, CONST)
        rounded = weights.to(q.start.dtype.element_ty)
        grad_values = product_over_places(rounded, grads, grad_values, CONST)
        grad_weights = product_over_channels(values, grads, CONST)
        mean_grad = tl.load(delta + tokens, mask=inside, other=0.0)
        grad_scores = weights * (grad_weights - mean_grad[None, :])
        grad_scores = grad_scores.to(q.start.dtype.element_ty)
        grad_keys = product_over_places(grad_scores, queries, grad_keys, CONST)
    pixel = heads * CONST.channels
    images = tl.num_programs(2) // heads
    map_start = (split * images + image) * keys_height * keys_width * pixel
    map_start += head * CONST.channels
    below = keys_width * pixel
    grad_keys = scaled(grad_keys, CONST.scale)
    store_tile(grad_k + map_start, grad_keys, key_y, key_x, below, pixel, on_map, CONST)
    store_tile(grad_v + map_start, grad_values, key_y, key_x, below, pixel, on_map, CONST)
