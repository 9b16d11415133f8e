"""Pooled attention, forward: online softmax with position logits added in the kernel.

Maps are read as pooling wrote them, channels-last with the heads side by side, and the output is
written to the map with the residual q added: no window partition, no permute, no scores in memory.
The backward pass is in ``attention_backward``.

Axes: B images, Hq × Wq queries and Hk × Wk keys of a map, C = h·d channels of h heads, Q_a queries
and K_a keys along axis a of a window, M queries and N keys of a block, T columns of the position
logits.

Position logits come as one row per query with a column for each row and each column of keys
(``logits``). Spreading them over keys is a product with a matrix of ones and zeros, which tensor
cores compute without a gather, and which is exact.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shape import AttentionShape
from .attention_arguments import AttentionConstants, Windows, case_of, check, query_grid
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
)
from .axis_tables import AxisTable
from .launch import Blocks, Map, accumulator_dtype
from .logits import logits_forward
from .tile_table import Case, measured_or


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: AxisTable | None,
    rel_w: AxisTable | None,
    shape: AttentionShape,
) -> tuple[Tensor, Tensor]:
    """Computes softmax(scale·q·kᵀ + q·R) v, plus q with a residual (Eqs. 1, 4 and 5).

    Windows are laid from the top left and may reach over the border of the map; keys beyond it
    are zeros, which queries attend to unless padding is masked.

    Bytes, e of an element: reads (B·Hq·Wq·C + B·Hq·Wq·h·T)·e of queries and their position
    logits once; a window's keys and values once per block of its queries, (B·Hk·Wk·C)·2·e where
    they stay in the cache; writes B·Hq·Wq·C·e and 4·B·h·Hq·Wq. The position logits before that:
    B·Hq·Wq·C·e read once or twice, B·h·Hq·Wq·T·e written.

    Args:
        q: (B, Hq, Wq, C), float16, bfloat16 or float32, or float64 in Triton's interpreter;
            channels contiguous, other strides arbitrary.
        k, v: (B, Hk, Wk, C), as q.
        rel_h, rel_w: R of Eq. 4 per axis of a window, (Q_a, K_a, d), as a table; or both None.
        shape: heads, scale and windows.

    Returns:
        the output, (B, Hq, Wq, C) contiguous, and what the backward pass needs: log₂ Σ exp of the
        logits of each query, (B, h, Hq, Wq) float32 (float64 for float64). Base 2, as the kernels
        compute: each change of base would round it once more.

    Raises:
        ValueError: sizes, windows, dtypes or strides do not fit together.
    """
    check(q, k, v, rel_h, rel_w, shape)
    logits = None if rel_h is None or rel_w is None else logits_forward(q, rel_h, rel_w, shape)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = q.new_empty(len(q), shape.heads, *q.shape[1:3], dtype=accumulator_dtype(q))
    constants = AttentionConstants.of(q, shape, has_rel=logits is not None)
    blocks = forward_blocks(q.device, case_of(q, constants, shape))
    _forward_kernel[query_grid(q, shape, blocks)](
        Map.of(q),
        Map.of(k),
        Map.of(v),
        logits,
        out,
        lse,
        *Windows.of(q, k, shape),
        constants,
        blocks.queries,
        blocks.keys,
        **blocks.options,
    )
    return out, lse


@measured_or("attention_forward")
def forward_blocks(case: Case) -> Blocks:
    """Blocks of the forward kernel for d channels of a head and T columns of position logits.

    Two or three programs of four warps share a processor, so that one computes exponentials
    while another multiplies. Three take 168 registers a thread and a third of the shared memory
    each: without spills for d <= 96 and T <= 32 (compiled for sm_90). float32 has no tensor
    cores at full precision, and its products are unrolled.
    """
    if case.dtype.itemsize > 2:
        return Blocks(queries=32, keys=32, warps=8, stages=1)
    registers = 168 if case.channels <= 96 and case.terms <= 32 else None
    return Blocks(queries=64, keys=64, warps=4, stages=2, registers=registers)


@triton.jit(do_not_specialize=Windows._fields)
def _forward_kernel(
    q, k, v, logits, out, lse, height, width, rows, columns, keys_height, keys_width,
    key_rows, key_columns, across, heads, second,
    CONST: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Attends from a block of a window's queries, of one head and image, to the window's keys."""
    windows = Windows(
        height, width, rows, columns, keys_height, keys_width, key_rows, key_columns, across,
        heads, second,
    )  # fmt: skip
    start, window, plane = tl.program_id(0) * M, tl.program_id(1), tl.program_id(2)
    if start >= query_count(window, windows):
        return
    image, head = (plane // heads).to(tl.int64), plane % heads
    y, x, inside = query_places(window, start, windows, M)
    q_start = head_start(q, image, head, CONST)
    queries = load_tile(q_start, y, x, q.stride_y, q.stride_x, inside, CONST)
    tokens = plane.to(tl.int64) * height * width + y * width + x
    if CONST.terms > 0:
        at = tokens[:, None] * CONST.terms + tl.arange(0, CONST.terms)[None, :]
        terms = tl.load(logits + at, mask=inside[:, None], other=0.0)
    k_start, v_start = head_start(k, image, head, CONST), head_start(v, image, head, CONST)
    peak = tl.full((M,), float("-inf"), CONST.accumulator)
    total = tl.zeros((M,), CONST.accumulator)
    attended = zero_tile(M, CONST)
    for key in range(0, windows.key_rows * windows.key_columns, N):
        key_y, key_x, row, column, on_map, seen = key_places(window, key, windows, N)
        keys = load_tile(k_start, key_y, key_x, k.stride_y, k.stride_x, on_map, CONST)
        scores = product_over_channels(queries, keys, CONST)
        scores *= CONST.scale
        if CONST.terms > 0:
            scores = product(terms, one_hot(row, column, second, CONST), scores, CONST.operand)
        if CONST.masked:
            seen = on_map
        scores = tl.where(seen[None, :], scores, float("-inf"))
        # A window's first key is on the map: the peak is finite from the first block on.
        peak_now = tl.maximum(peak, tl.max(scores, 1) * LOG2_E)
        weights = tl.exp2(scores * LOG2_E - peak_now[:, None])
        shrink = tl.exp2(peak - peak_now)
        values = load_tile(v_start, key_y, key_x, v.stride_y, v.stride_x, on_map, CONST)
        total = total * shrink + tl.sum(weights, 1)
        weights = weights.to(out.dtype.element_ty)
        attended = product_over_places(weights, values, scaled(attended, shrink[:, None]), CONST)
        peak = peak_now
    attended = attended[0] / total[:, None], attended[1] / total[:, None]
    if CONST.residual:
        attended = added(attended, queries, CONST)
    pixel = heads * CONST.channels
    out += image * height * width * pixel + head * CONST.channels
    store_tile(out, attended, y, x, width * pixel, pixel, inside, CONST)
    tl.store(lse + tokens, peak + tl.log2(total), mask=inside)
