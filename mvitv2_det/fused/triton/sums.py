"""Sums over the rows of several matrices by one launch: the last step of sums over tokens.

Kernels that sum over tokens leave a row of partial sums for each program. The rows are added in a
fixed order: no atomics, the same result each time.

Axes: P rows, N columns of a matrix, T taps of a convolution, d channels of a head.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import accumulator, ceil_div

MOST = 4  # matrices of a launch
_TILE = (128, 32)  # rows and columns; one for all, since each is compiled


def row_sums(
    matrices: Sequence[Tensor], dtype: torch.dtype | None = None, turned: tuple[int, int] = (0, 1)
) -> list[Tensor]:
    """Sums of up to four matrices over their rows.

    Least bytes: those of the matrices.

    Args:
        matrices: (P_i, N_i), contiguous, of one type.
        dtype: of the sums; by default that of the matrices.
        turned: (T, d); sums of the first T·d columns of the first three of several matrices are
            written as (d, T), the layout of a depthwise convolution's weight.

    Returns:
        (N_i) for each, side by side in memory.
    """
    first = matrices[0]
    if len(matrices) == 1:  # the host launches PyTorch's own sum faster
        return [first.sum(0).to(dtype or first.dtype)]
    columns = [matrix.shape[1] for matrix in matrices]
    sums = torch.empty(sum(columns), dtype=dtype or first.dtype, device=first.device)
    missing = MOST - len(matrices)
    rows = [len(matrix) for matrix in matrices] + missing * [0]
    programs = sum(ceil_div(count, _TILE[1]) for count in columns)
    with torch.cuda.device_of(first):  # Triton launches on the current device
        _row_sums[(programs,)](
            *matrices, *missing * [first], sums, *rows, *columns, *missing * [0], *turned,
            ACC=accumulator(first), BLOCK_P=_TILE[0], BLOCK_N=_TILE[1], num_warps=4,
        )  # fmt: skip
    return list(sums.split(columns))


@triton.jit
def _select(which, a, b, c, d):
    return tl.where(which < 2, tl.where(which == 0, a, b), tl.where(which == 2, c, d))


@triton.jit(
    do_not_specialize=[
        "rows_a", "rows_b", "rows_c", "rows_d", "columns_a", "columns_b", "columns_c", "columns_d",
        "taps", "channels",
    ]
)  # fmt: skip
def _row_sums(
    a, b, c, d, sums, rows_a, rows_b, rows_c, rows_d, columns_a, columns_b, columns_c, columns_d,
    taps, channels, ACC: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The sums of a block of columns of one matrix."""
    block = tl.program_id(0)
    start_b = tl.cdiv(columns_a, BLOCK_N)
    start_c = start_b + tl.cdiv(columns_b, BLOCK_N)
    start_d = start_c + tl.cdiv(columns_c, BLOCK_N)
    which = (block >= start_b).to(tl.int32) + (block >= start_c).to(tl.int32)
    which += (block >= start_d).to(tl.int32)
    matrix = _select(which, a, b, c, d)
    rows = _select(which, rows_a, rows_b, rows_c, rows_d)
    columns = _select(which, columns_a, columns_b, columns_c, columns_d)
    before = _select(which, 0, columns_a, columns_a + columns_b, columns_a + columns_b + columns_c)
    column = (block - _select(which, 0, start_b, start_c, start_d)) * BLOCK_N
    column += tl.arange(0, BLOCK_N)
    known = column < columns
    total = tl.zeros((BLOCK_P, BLOCK_N), ACC)
    for start in range(0, rows, BLOCK_P):
        row = start + tl.arange(0, BLOCK_P)
        mask = (row < rows)[:, None] & known[None, :]
        at = matrix + row.to(tl.int64)[:, None] * columns + column[None, :]
        total += tl.load(at, mask=mask, other=0.0)
    is_tap = (which < 3) & (column < taps * channels)
    place = tl.where(is_tap, column % channels * taps + column // channels, column)
    found = tl.sum(total, 0).to(sums.dtype.element_ty)
    tl.store(sums + before + place, found, mask=known)
