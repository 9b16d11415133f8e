"""Pooled attention, forward: online softmax over products of extended queries and keys.

Queries are read as pooling wrote them, channels-last with the heads side by side, and the output is
written to the map with the residual q added: no permute, no scores in memory. Keys and values, of
which many queries read each, are packed by windows. The backward pass is in ``attention_backward``.

Axes: B images, Hq × Wq queries and Hk × Wk keys of a map, C = h·d channels of h heads, Q_a queries
and K_a keys along axis a of a window, M queries and N keys of a block, T terms.

Position logits of a query, one for each row and each column of keys, are terms that extend it
(``attention_tiles``). Keys are extended by ones and zeros: the product that gives q·k also spreads
position logits over keys, exactly and without a gather, and hides keys.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shape import AttentionShape
from .attention_arguments import AttentionConstants, Windows, case_of, check, query_grid
from .attention_tiles import (
    added,
    in_base_2,
    load_packed,
    load_queries,
    load_tile,
    product_over_columns,
    product_over_places,
    query_count,
    query_places,
    rows_of,
    scaled,
    store_tile,
    window_start,
    zero_tile,
)
from .axis_tables import AxisTable
from .launch import Blocks, Map, accumulator_dtype
from .logits import extend
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

    Bytes, e of an element: reads (B·Hq·Wq·C·(1 + residual) + B·Hq·Wq·h·T)·e of queries and their
    terms once; a window's packed keys and values once per block of its queries, from memory where
    they do not stay in the cache; writes B·Hq·Wq·C·e and 4·B·h·Hq·Wq. What :func:`.logits.extend`
    moves comes before that.

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
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = q.new_empty(len(q), shape.heads, *q.shape[1:3], dtype=accumulator_dtype(q))
    constants = AttentionConstants.of(q, shape, has_rel=rel_h is not None)
    blocks = forward_blocks(q.device, case_of(q, constants, shape))
    windows = Windows.of(q, k, shape, blocks.keys)
    terms, packed = extend(q, k, v, rel_h, rel_w, windows, constants)
    _forward_kernel[query_grid(windows, blocks)](
        Map.of(q), terms, packed, Map.of(out), lse, *windows, constants.of_products(),
        blocks.queries, blocks.keys, **blocks.options,
    )  # fmt: skip
    return out, lse


@measured_or("attention_forward")
def forward_blocks(case: Case) -> Blocks:
    """Blocks of the forward kernel for d channels of a head and T terms.

    Three programs of four warps share a processor, so that some compute exponentials while another
    multiplies. float32 has no tensor cores at full precision, and its products are unrolled.
    """
    if case.dtype.itemsize > 2:
        return Blocks(queries=32, keys=32, warps=8, stages=1)
    registers = 168 if case.channels <= 96 and case.terms <= 32 else None
    return Blocks(queries=64, keys=64, warps=4, stages=2, registers=registers)


@triton.jit(do_not_specialize=Windows._fields)
def _forward_kernel(
    q, terms, packed_keys, out, lse, images, heads, height, width, rows, columns, keys_height,
    keys_width, key_rows, key_columns, down, across, most, packed, second,
    CONST: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Attends from a block of a window's queries, of one head and image, to the window's keys."""
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
    queries = load_queries(q_rows, terms, tokens, inside, CONST)
    keys_start = window_start(packed_keys, plane, window, windows, CONST)
    peak = tl.full((M,), float("-inf"), CONST.accumulator)
    total = tl.zeros((M,), CONST.accumulator)
    attended = zero_tile(M, CONST, OWN)
    for _ in range(0, key_rows * key_columns, N):
        keys = load_packed(keys_start, N, CONST, EXTENDED)
        scores = product_over_columns(queries, keys, CONST, EXTENDED)
        # A window's first key is on the map: the peak is finite from the first block on.
        peak_now = tl.maximum(peak, in_base_2(tl.max(scores, 1), CONST))
        weights = tl.exp2(in_base_2(scores, CONST) - peak_now[:, None])
        shrink = tl.exp2(peak - peak_now)
        total = total * shrink + tl.sum(weights, 1)
        weights = weights.to(q.start.dtype.element_ty)
        values = load_packed(keys_start + (CONST.channels + CONST.terms), N, CONST, OWN)
        attended = scaled(attended, shrink[:, None])
        attended = product_over_places(weights, values, attended, CONST, OWN)
        peak = peak_now
        keys_start += N * CONST.row
    attended = scaled(attended, (1 / total)[:, None])
    if CONST.residual:
        attended = added(attended, load_tile(q_rows, inside, CONST, OWN), CONST)
    store_tile(rows_of(out, image, head, y, x, CONST), attended, inside, CONST, OWN)
    tl.store(lse + tokens, peak + tl.log2(total), mask=inside)
