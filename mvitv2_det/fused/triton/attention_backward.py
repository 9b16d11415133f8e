"""Pooled attention, backward: weights are computed again from the log-sum-exp, tile by tile.

Two kernels go over queries × keys: one sums over keys (for q and the position logits), one over
queries (for k and v). No atomics: where one program per block of keys would leave processors
idle, queries are split over more programs, and their partial sums are added in fixed order.

Axes: those of ``attention``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import check, kernel_constants
from .attention_tiles import (
    LOG2_E,
    PROCESSORS,
    AttentionShape,
    Blocks,
    accumulator_dtype,
    empty_tile,
    key_places,
    load_tile,
    map_strides,
    most_queries,
    one_hot,
    product,
    product_over_channels,
    product_over_places,
    query_count,
    query_places,
    sizes,
    store_tile,
    window_count,
)
from .position_logits import position_logits, position_logits_backward

_MOST_SPLITS = 32  # of the queries of a window: bounds the partial sums' memory


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    out: Tensor,
    lse: Tensor,
    shape: AttentionShape,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients of :func:`attention.attention_forward`, as ``mvitv2_det.fused.cpu.tiled_attention`` has.

    Position logits are computed again rather than kept.

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
        the gradients of q (the residual's included), k, v, rel_h and rel_w, all contiguous and
        of the dtype of what they belong to; None for rel_h and rel_w where those are None.

    Raises:
        ValueError: sizes, windows, dtypes or strides do not fit together.
    """
    check(q, k, v, rel_h, rel_w, shape)
    grad = grad if grad.stride(3) == 1 else grad.contiguous()
    logits = None if rel_h is None else position_logits(q, rel_h, rel_w, shape)
    grad_q, grad_logits, delta = _sum_over_keys(grad, q, k, v, logits, rel_h, out, lse, shape)
    grad_k, grad_v = _sum_over_queries(grad, q, k, v, logits, lse, delta, shape)
    if rel_h is None:
        return grad_q, grad_k, grad_v, None, None
    grad_h, grad_w = position_logits_backward(grad_logits, q, rel_h, rel_w, grad_q, shape)
    return grad_q, grad_k, grad_v, grad_h, grad_w


def query_blocks(dtype: torch.dtype, terms: int) -> Blocks:
    """Tiles of the kernel that sums over keys, for T columns of position logits.

    Two programs of four warps share a processor, with 255 registers a thread: for d = 96 none
    are spilled with T <= 32, 32 bytes with T = 64. More columns, of large images, take more
    registers than that, and so more warps (compiled for sm_90).
    """
    if dtype.itemsize > 2:
        return Blocks(queries=32, keys=32, warps=8, stages=1)
    if terms > 64:
        return Blocks(queries=64, keys=32, warps=8, stages=2)
    return Blocks(queries=64, keys=64, warps=4, stages=2)


def key_blocks(dtype: torch.dtype, keys: int, terms: int) -> Blocks:
    """Tiles of the kernel that sums over queries, for the keys of a window and T.

    Queries are read again for each block of keys, so that the blocks are large where there are
    many keys. No spills with d = 96 (compiled for sm_90); with many columns only
    small blocks fit into shared memory.
    """
    if dtype.itemsize > 2:
        return Blocks(queries=32, keys=32, warps=8, stages=1)
    if terms > 128:
        return Blocks(queries=32, keys=64, warps=4, stages=2)
    if keys <= 64:
        return Blocks(queries=64, keys=64, warps=4, stages=2)
    return Blocks(queries=64, keys=128, warps=8, stages=2)


def query_splits(programs: int, tiles: int) -> int:
    """Over how many programs the queries of a window are split, for sums over queries.

    As many as fill the processors twice, where there would be fewer programs than that; no more
    than there are tiles of queries.

    Args:
        programs: blocks of keys in all windows, heads and images.
        tiles: blocks of queries of a window.
    """
    return max(min(2 * PROCESSORS // programs, tiles, _MOST_SPLITS), 1)


def _sum_over_keys(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logits: Tensor | None,
    rel_h: Tensor | None,
    out: Tensor,
    lse: Tensor,
    shape: AttentionShape,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of q but for its logits of columns, and of all position logits; Σ grad·attended.

    A tile of queries spans few rows, so that what their logits of rows give is added on the way.
    """
    grad_q = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    grad_logits = None if logits is None else torch.empty_like(logits)
    delta = torch.empty_like(lse)
    constants = kernel_constants(q, shape, has_rel=logits is not None)
    blocks = query_blocks(q.dtype, constants["T"])
    grid = (
        triton.cdiv(most_queries(q, shape), blocks.queries),
        window_count(q, shape),
        q.shape[0] * shape.heads,
    )
    _over_keys_kernel[grid](
        q,
        k,
        v,
        grad,
        logits,
        None if rel_h is None else rel_h.contiguous(),
        out,
        lse,
        grad_q,
        grad_logits,
        delta,
        **map_strides(q=q, k=k, v=v, grad=grad),
        **sizes(q, k, shape),
        **constants,
        M=blocks.queries,
        N=blocks.keys,
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
    constants = kernel_constants(q, shape, has_rel=logits is not None)
    blocks = key_blocks(q.dtype, keys, constants["T"])
    windows, planes = window_count(q, shape), q.shape[0] * shape.heads
    tiles = triton.cdiv(most_queries(q, shape), blocks.queries)
    blocks_of_keys = triton.cdiv(keys, blocks.keys)
    splits = query_splits(blocks_of_keys * windows * planes, tiles)
    dtype = q.dtype if splits == 1 else accumulator_dtype(q)
    grads = torch.empty((2, splits, *k.shape), dtype=dtype, device=k.device)
    _over_queries_kernel[(blocks_of_keys * splits, windows, planes)](
        q,
        k,
        v,
        grad,
        logits,
        lse,
        delta,
        grads[0],
        grads[1],
        **map_strides(q=q, k=k, v=v, grad=grad),
        **sizes(q, k, shape),
        blocks_of_keys=blocks_of_keys,
        queries_of_split=triton.cdiv(tiles, splits) * blocks.queries,
        **constants,
        M=blocks.queries,
        N=blocks.keys,
        **blocks.options,
    )
    grads = grads[:, 0] if splits == 1 else grads.sum(1).to(q.dtype)
    return grads[0], grads[1]


@triton.jit
def _inner(out, queries, grads, RESIDUAL: tl.constexpr, ACC: tl.constexpr):
    """Σ grad·attended over channels; what was attended is the output without the residual."""
    attended = out.to(ACC)
    if RESIDUAL:
        attended -= queries.to(ACC)
    return tl.sum(attended * grads.to(ACC), 1)


@triton.jit
def _over_keys_kernel(
    q,
    k,
    v,
    grad,
    logits,
    rel_h,
    out,
    lse,
    grad_q,
    grad_logits,
    delta,
    q_b,
    q_y,
    q_x,
    k_b,
    k_y,
    k_x,
    v_b,
    v_y,
    v_x,
    grad_b,
    grad_y,
    grad_x,
    height,
    width,
    rows,
    columns,
    keys_height,
    keys_width,
    key_rows,
    key_columns,
    windows_across,
    HEADS: tl.constexpr,
    SCALE: tl.constexpr,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    REST: tl.constexpr,
    T: tl.constexpr,
    SECOND: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """One block of a window's queries, of one head and image, against all keys of the window."""
    first, window, plane = tl.program_id(0) * M, tl.program_id(1), tl.program_id(2)
    if first >= query_count(window, height, width, rows, columns, windows_across):
        return
    image, head = (plane // HEADS).to(tl.int64), plane % HEADS
    y, x, inside = query_places(window, first, height, width, rows, columns, windows_across, M)
    queries, q_rest = load_tile(
        q + image * q_b + head * CHANNELS, y, x, q_y, q_x, inside, CHANNELS, D, REST
    )
    grads, grads_rest = load_tile(
        grad + image * grad_b + head * CHANNELS, y, x, grad_y, grad_x, inside, CHANNELS, D, REST
    )
    pixel: tl.constexpr = HEADS * CHANNELS
    map_start = image * height * width * pixel + head * CHANNELS
    attended, attended_rest = load_tile(
        out + map_start, y, x, width * pixel, pixel, inside, CHANNELS, D, REST
    )
    mean_grad = _inner(attended, queries, grads, RESIDUAL, ACC)
    if REST > 0:
        mean_grad += _inner(attended_rest, q_rest, grads_rest, RESIDUAL, ACC)
    tokens = plane.to(tl.int64) * height * width + y * width + x
    tl.store(delta + tokens, mean_grad, mask=inside)
    peak = tl.load(lse + tokens, mask=inside, other=0.0)
    if T > 0:
        term_offsets = tokens[:, None] * T + tl.arange(0, T)[None, :]
        terms = tl.load(logits + term_offsets, mask=inside[:, None], other=0.0)
        grad_terms = tl.zeros((M, T), ACC)
    k_start, v_start = k + image * k_b + head * CHANNELS, v + image * v_b + head * CHANNELS
    grad_queries, grad_q_rest = empty_tile(M, D, REST, ACC)
    for key in range(0, key_rows * key_columns, N):
        key_y, key_x, row, column, real, seen = key_places(
            window, key, keys_height, keys_width, key_rows, key_columns, windows_across, N
        )
        keys, k_rest = load_tile(k_start, key_y, key_x, k_y, k_x, real, CHANNELS, D, REST)
        scores = product_over_channels(queries, q_rest, keys, k_rest, REST, ACC, OPERAND)
        scores *= SCALE
        if T > 0:
            places = one_hot(row, column, SECOND, T, OPERAND)
            scores = product(terms, places, scores, OPERAND)
        if MASKED:
            seen = real
        weights = tl.exp2(scores * LOG2_E - peak[:, None])
        values, v_rest = load_tile(v_start, key_y, key_x, v_y, v_x, real, CHANNELS, D, REST)
        grad_weights = product_over_channels(grads, grads_rest, values, v_rest, REST, ACC, OPERAND)
        grad_scores = weights * (grad_weights - mean_grad[:, None])
        grad_scores = tl.where(seen[None, :], grad_scores, 0.0).to(q.dtype.element_ty)
        grad_queries, grad_q_rest = product_over_places(
            grad_scores, keys, k_rest, grad_queries, grad_q_rest, REST, OPERAND
        )
        if T > 0:
            grad_terms = product(grad_scores, tl.trans(places), grad_terms, OPERAND)
    grad_queries *= SCALE
    grad_q_rest *= SCALE
    if T > 0:
        grad_terms = grad_terms.to(grad_logits.dtype.element_ty)
        tl.store(grad_logits + term_offsets, grad_terms, mask=inside[:, None])
        row, term = y - window // windows_across * rows, tl.arange(0, T)
        line = tl.minimum(columns, width - window % windows_across * columns)
        for near in range(first // line, tl.minimum((first + M - 1) // line + 1, rows)):
            rel, rel_rest = load_tile(
                rel_h + near * key_rows * CHANNELS,
                term,
                term,
                CHANNELS,
                0,
                term < key_rows,
                CHANNELS,
                D,
                REST,
            )
            of_row = tl.where((row == near)[:, None], grad_terms, 0.0).to(grad_terms.dtype)
            grad_queries, grad_q_rest = product_over_places(
                of_row, rel, rel_rest, grad_queries, grad_q_rest, REST, OPERAND
            )
    if RESIDUAL:
        grad_queries += grads.to(ACC)
        grad_q_rest += grads_rest.to(ACC)
    start, line = grad_q + map_start, width * pixel
    store_tile(start, grad_queries, grad_q_rest, y, x, line, pixel, inside, CHANNELS, D, REST)


@triton.jit
def _over_queries_kernel(
    q,
    k,
    v,
    grad,
    logits,
    lse,
    delta,
    grad_k,
    grad_v,
    q_b,
    q_y,
    q_x,
    k_b,
    k_y,
    k_x,
    v_b,
    v_y,
    v_x,
    grad_b,
    grad_y,
    grad_x,
    height,
    width,
    rows,
    columns,
    keys_height,
    keys_width,
    key_rows,
    key_columns,
    windows_across,
    blocks_of_keys,
    queries_of_split,
    HEADS: tl.constexpr,
    SCALE: tl.constexpr,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    REST: tl.constexpr,
    T: tl.constexpr,
    SECOND: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MASKED: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """One block of a window's keys, of one head and image, against a split of its queries.

    Tiles lie keys × queries, so that weights are the left operand of products as they are.
    """
    split, window, plane = tl.program_id(0) // blocks_of_keys, tl.program_id(1), tl.program_id(2)
    image, head = (plane // HEADS).to(tl.int64), plane % HEADS
    key_y, key_x, row, column, real, _ = key_places(
        window,
        tl.program_id(0) % blocks_of_keys * N,
        keys_height,
        keys_width,
        key_rows,
        key_columns,
        windows_across,
        N,
    )
    # Weights of keys that are not on the map are computed too, and dropped in the end.
    keys, k_rest = load_tile(
        k + image * k_b + head * CHANNELS, key_y, key_x, k_y, k_x, real, CHANNELS, D, REST
    )
    values, v_rest = load_tile(
        v + image * v_b + head * CHANNELS, key_y, key_x, v_y, v_x, real, CHANNELS, D, REST
    )
    if T > 0:
        places = tl.trans(one_hot(row, column, SECOND, T, OPERAND))
    q_start = q + image * q_b + head * CHANNELS
    grad_start = grad + image * grad_b + head * CHANNELS
    grad_keys, grad_k_rest = empty_tile(N, D, REST, ACC)
    grad_values, grad_v_rest = empty_tile(N, D, REST, ACC)
    start = split * queries_of_split
    end = tl.minimum(
        start + queries_of_split,
        query_count(window, height, width, rows, columns, windows_across),
    )
    for first in range(start, end, M):
        y, x, inside = query_places(window, first, height, width, rows, columns, windows_across, M)
        queries, q_rest = load_tile(q_start, y, x, q_y, q_x, inside, CHANNELS, D, REST)
        tokens = plane.to(tl.int64) * height * width + y * width + x
        scores = product_over_channels(keys, k_rest, queries, q_rest, REST, ACC, OPERAND)
        scores *= SCALE
        if T > 0:
            term_offsets = tokens[:, None] * T + tl.arange(0, T)[None, :]
            terms = tl.load(logits + term_offsets, mask=inside[:, None], other=0.0)
            scores = product(places, tl.trans(terms), scores, OPERAND)
        # An infinite peak: queries that are not there weigh nothing.
        peak = tl.load(lse + tokens, mask=inside, other=float("inf"))
        weights = tl.exp2(scores * LOG2_E - peak[None, :])
        grads, grads_rest = load_tile(grad_start, y, x, grad_y, grad_x, inside, CHANNELS, D, REST)
        rounded = weights.to(q.dtype.element_ty)
        grad_values, grad_v_rest = product_over_places(
            rounded, grads, grads_rest, grad_values, grad_v_rest, REST, OPERAND
        )
        grad_weights = product_over_channels(values, v_rest, grads, grads_rest, REST, ACC, OPERAND)
        mean_grad = tl.load(delta + tokens, mask=inside, other=0.0)
        grad_scores = (weights * (grad_weights - mean_grad[None, :])).to(q.dtype.element_ty)
        grad_keys, grad_k_rest = product_over_places(
            grad_scores, queries, q_rest, grad_keys, grad_k_rest, REST, OPERAND
        )
    pixel: tl.constexpr = HEADS * CHANNELS
    images = tl.num_programs(2) // HEADS
    map_start = (split * images + image) * keys_height * keys_width * pixel + head * CHANNELS
    line = keys_width * pixel
    grad_keys *= SCALE
    grad_k_rest *= SCALE
    start = grad_k + map_start
    store_tile(start, grad_keys, grad_k_rest, key_y, key_x, line, pixel, real, CHANNELS, D, REST)
    start = grad_v + map_start
    store_tile(start, grad_values, grad_v_rest, key_y, key_x, line, pixel, real, CHANNELS, D, REST)
