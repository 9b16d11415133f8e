"""Pooled attention, forward: online softmax with position logits added in the kernel.

Maps are read where pooling left them, channels-last with the heads side by side, and the output
is written to the map with the residual q added: no window partition, no permute, no scores in
memory. The backward pass is in ``attention_backward``.

Axes: B images, Hq × Wq queries and Hk × Wk keys of a map, C = h·d channels of h heads, d split
into D and a rest, Q_a queries and K_a keys along axis a of a window, M queries and N keys of a
block, T columns of the position logits.

Position logits come as one row per query with a column for each row and each column of keys
(``position_logits``). Spreading them over keys is a product with a matrix of ones and zeros, which
tensor cores do without a gather, and which is exact.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_tiles import (
    LOG2_E,
    AttentionShape,
    Blocks,
    accumulator_dtype,
    channel_tiles,
    empty_tile,
    key_places,
    load_tile,
    map_strides,
    most_queries,
    one_hot,
    precision,
    product,
    product_over_channels,
    product_over_places,
    query_count,
    query_places,
    sizes,
    store_tile,
    window_count,
)
from .position_logits import position_logits, term_columns

MOST_CHANNELS = 128  # of a head: a tile of them is in registers
MOST_KEYS_ALONG = 256  # rows and columns of a window: their logits are in shared memory

__all__ = ["AttentionShape", "attention_forward"]


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    shape: AttentionShape,
) -> tuple[Tensor, Tensor]:
    """softmax(scale·q·kᵀ + q·R) v, and q added where the shape says so (Eqs. 1, 4 and 5).

    As ``mvitv2_det.fused.cpu.tiled_attention`` computes it. Windows are laid from the top left and may
    reach over the border of the map; keys out there are zeros, seen unless masked.

    Bytes, e of an element: reads (B·Hq·Wq·C + B·Hq·Wq·h·T)·e of queries and their position
    logits once; a window's keys and values once per block of its queries, (B·Hk·Wk·C)·2·e where
    they stay in the cache; writes B·Hq·Wq·C·e and 4·B·h·Hq·Wq. The position logits before that:
    B·Hq·Wq·C·e read once or twice, B·h·Hq·Wq·T·e written.

    Args:
        q: (B, Hq, Wq, C), float16, bfloat16 or float32, or float64 in Triton's interpreter;
            channels contiguous, other strides arbitrary.
        k, v: (B, Hk, Wk, C), as q.
        rel_h, rel_w: R of Eq. 4 per axis of a window, (Q_a, K_a, d), in q's dtype; or both None.
        shape: heads, scale and windows.

    Returns:
        the output, (B, Hq, Wq, C) contiguous, and what the backward pass needs: log₂ Σ exp of the
        logits of each query, (B, h, Hq, Wq) float32 (float64 for float64). Base 2, as the kernels
        compute: each change of base would round it once more.

    Raises:
        ValueError: sizes, windows, dtypes or strides do not fit together.
    """
    check(q, k, v, rel_h, rel_w, shape)
    logits = None if rel_h is None else position_logits(q, rel_h, rel_w, shape)
    batch, height, width, channels = q.shape
    out = torch.empty((batch, height, width, channels), dtype=q.dtype, device=q.device)
    lse = torch.empty(
        (batch, shape.heads, height, width), dtype=accumulator_dtype(q), device=q.device
    )
    constants = kernel_constants(q, shape, has_rel=logits is not None)
    blocks = forward_blocks(q.dtype, constants["CHANNELS"], constants["T"])
    grid = (
        triton.cdiv(most_queries(q, shape), blocks.queries),
        window_count(q, shape),
        batch * shape.heads,
    )
    _forward_kernel[grid](
        q,
        k,
        v,
        logits,
        out,
        lse,
        **map_strides(q=q, k=k, v=v),
        **sizes(q, k, shape),
        **constants,
        M=blocks.queries,
        N=blocks.keys,
        **blocks.options,
    )
    return out, lse


def forward_blocks(dtype: torch.dtype, channels: int, terms: int) -> Blocks:
    """Tiles of the forward kernel, for d channels of a head and T columns of position logits.

    Two or three programs of four warps share a processor, so that one computes exponentials
    while another multiplies. Three take 168 registers a thread and a third of the shared memory
    each: without spills for d <= 96 and T <= 32 (compiled for sm_90). float32 has no tensor
    cores at full precision, and its products are unrolled.
    """
    if dtype.itemsize > 2:
        return Blocks(queries=32, keys=32, warps=8, stages=1)
    registers = 168 if channels <= 96 and terms <= 32 else None
    return Blocks(queries=64, keys=64, warps=4, stages=2, registers=registers)


def kernel_constants(q: Tensor, shape: AttentionShape, *, has_rel: bool) -> dict[str, Any]:
    """What the kernels are compiled for, apart from the tiles."""
    channels = q.shape[-1] // shape.heads
    first, rest = channel_tiles(channels)
    terms, second = term_columns(shape.window_kv) if has_rel else (0, 0)
    return {
        "HEADS": shape.heads,
        "SCALE": shape.scale,
        "CHANNELS": channels,
        "D": first,
        "REST": rest,
        "T": terms,
        "SECOND": second,
        "RESIDUAL": shape.residual,
        "MASKED": shape.mask_padding,
        **precision(q),
    }


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    shape: AttentionShape,
) -> None:
    """Raises ValueError where the kernels cannot run on these tensors, saying why."""
    if k.shape != v.shape or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]):
        raise ValueError(
            "q must be (B, Hq, Wq, C), k and v (B, Hk, Wk, C), got "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if q.shape[3] % shape.heads or shape.scale <= 0:
        raise ValueError(
            f"needs whole heads and a positive scale, got {q.shape[3]} channels, {shape}"
        )
    channels = q.shape[3] // shape.heads
    if channels > MOST_CHANNELS:
        raise ValueError(f"heads have at most {MOST_CHANNELS} channels, got {channels}")
    tensors = [tensor for tensor in (q, k, v, rel_h, rel_w) if tensor is not None]
    if any(tensor.dtype != q.dtype for tensor in tensors):
        raise ValueError(f"one dtype for all, got {[tensor.dtype for tensor in tensors]}")
    if any(tensor.stride(3) != 1 for tensor in (q, k, v)):
        raise ValueError("channels of q, k and v must be contiguous")
    if any(_reach(tensor) >= 2**31 for tensor in (q, k, v)):
        raise ValueError("one image's q, k or v reaches over 2³¹ elements")
    _check_windows(q, k, rel_h, rel_w, shape)


def _reach(x: Tensor) -> int:
    """Elements from the first to the last of one image."""
    return sum(
        (size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)
    )


def _check_windows(
    q: Tensor, k: Tensor, rel_h: Tensor | None, rel_w: Tensor | None, shape: AttentionShape
) -> None:
    for axis in (0, 1):
        queries, keys = shape.window_q[axis], shape.window_kv[axis]
        counts = triton.cdiv(q.shape[1 + axis], queries), triton.cdiv(k.shape[1 + axis], keys)
        if counts[0] != counts[1]:
            raise ValueError(
                f"q has {counts[0]} windows along axis {axis} and k {counts[1]}: maps "
                f"{tuple(q.shape)} and {tuple(k.shape)}, windows of {queries} and {keys}"
            )
    if (rel_h is None) != (rel_w is None):
        raise ValueError("rel_h and rel_w come together")
    if rel_h is None:
        return
    if sum(shape.window_kv) > MOST_KEYS_ALONG:
        raise ValueError(
            f"position logits are for {MOST_KEYS_ALONG} rows and columns of keys together, "
            f"got {shape.window_kv}"
        )
    for axis, rel in enumerate((rel_h, rel_w)):
        wanted = (shape.window_q[axis], shape.window_kv[axis], q.shape[3] // shape.heads)
        if tuple(rel.shape) != wanted:
            raise ValueError(f"R of axis {axis} must be {wanted}, got {tuple(rel.shape)}")


@triton.jit
def _forward_kernel(
    q,
    k,
    v,
    logits,
    out,
    lse,
    q_b,
    q_y,
    q_x,
    k_b,
    k_y,
    k_x,
    v_b,
    v_y,
    v_x,
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
    tokens = plane.to(tl.int64) * height * width + y * width + x
    if T > 0:
        terms = tl.load(
            logits + tokens[:, None] * T + tl.arange(0, T)[None, :],
            mask=inside[:, None],
            other=0.0,
        )
    k_start, v_start = k + image * k_b + head * CHANNELS, v + image * v_b + head * CHANNELS
    peak = tl.full((M,), float("-inf"), ACC)
    total = tl.zeros((M,), ACC)
    attended, attended_rest = empty_tile(M, D, REST, ACC)
    for key in range(0, key_rows * key_columns, N):
        key_y, key_x, row, column, real, seen = key_places(
            window, key, keys_height, keys_width, key_rows, key_columns, windows_across, N
        )
        keys, k_rest = load_tile(k_start, key_y, key_x, k_y, k_x, real, CHANNELS, D, REST)
        scores = product_over_channels(queries, q_rest, keys, k_rest, REST, ACC, OPERAND)
        scores *= SCALE
        if T > 0:
            scores = product(terms, one_hot(row, column, SECOND, T, OPERAND), scores, OPERAND)
        if MASKED:
            seen = real
        scores = tl.where(seen[None, :], scores, float("-inf"))
        # A window's first key is real: the peak is finite from the first block on.
        peak_now = tl.maximum(peak, tl.max(scores, 1) * LOG2_E)
        weights = tl.exp2(scores * LOG2_E - peak_now[:, None])
        shrink = tl.exp2(peak - peak_now)
        values, v_rest = load_tile(v_start, key_y, key_x, v_y, v_x, real, CHANNELS, D, REST)
        total = total * shrink + tl.sum(weights, 1)
        attended, attended_rest = product_over_places(
            weights.to(v.dtype.element_ty),
            values,
            v_rest,
            attended * shrink[:, None],
            attended_rest * shrink[:, None],
            REST,
            OPERAND,
        )
        peak = peak_now
    attended /= total[:, None]
    attended_rest /= total[:, None]
    if RESIDUAL:
        attended += queries.to(ACC)
        attended_rest += q_rest.to(ACC)
    pixel: tl.constexpr = HEADS * CHANNELS
    start = out + image * height * width * pixel + head * CHANNELS
    line = width * pixel
    store_tile(start, attended, attended_rest, y, x, line, pixel, inside, CHANNELS, D, REST)
    tl.store(lse + tokens, peak + tl.log2(total), mask=inside)
