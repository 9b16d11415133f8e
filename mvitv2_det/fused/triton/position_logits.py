"""Position logits of Eq. 4: each query times R of its row, and R of its column; and backward.

Queries that share a row (a column) of their windows share R, so that one product per row gives
the logits of all of them. They are computed once per query and hold K_h + K_w numbers, never one
per query and key.

Axes: B images, h heads, H × W queries, d channels of a head padded to D, Q_a queries and K_a keys
along axis a of a window, L queries of one line (all that share a row, or a column, of whatever
window), M of a block, T columns of the logits.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_tiles import (
    PROCESSORS,
    AttentionShape,
    Blocks,
    accumulator_dtype,
    padded,
    precision,
    product,
)


def term_columns(window_kv: tuple[int, int]) -> tuple[int, int]:
    """How many columns the logits have, a power of two, and where those of the second axis begin.

    Each axis begins at half of the columns where that is room enough: then both of its products
    are of the smallest size.
    """
    rows, columns = window_kv
    total = max(padded(rows + columns), 32)
    return total, total // 2 if max(rows, columns) <= total // 2 else rows


def line_blocks(dtype: torch.dtype, columns: int, *, backward: bool) -> Blocks:
    """Tiles of queries of a line, for the columns of an axis.

    Chosen so that several programs share a processor: compiled for sm_90, forward takes 94
    registers a thread or fewer, backward 128 for windows of 14 × 14 keys and 186 for whole maps
    of 25 × 34. float32 has no tensor cores at full precision, and its products are
    unrolled.
    """
    if dtype.itemsize > 2:
        return Blocks(queries=16, keys=0, warps=8, stages=1)
    if backward:
        return Blocks(queries=32, keys=0, warps=4 if columns <= 64 else 8, stages=2)
    return Blocks(queries=64, keys=0, warps=8, stages=1)


def position_logits(q: Tensor, rel_h: Tensor, rel_w: Tensor, shape: AttentionShape) -> Tensor:
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
    batch, height, width, _ = q.shape
    terms, _ = term_columns(shape.window_kv)
    logits = torch.empty((batch, shape.heads, height, width, terms), dtype=q.dtype, device=q.device)
    for axis, rel in enumerate((rel_h, rel_w)):
        line = _line(q, rel, axis, shape)
        blocks = line_blocks(q.dtype, line["COLUMNS"], backward=False)
        grid = (triton.cdiv(line["length"], blocks.queries), rel.shape[0])
        _logits_kernel[grid](
            q, rel.contiguous(), logits, **line, BLOCK=blocks.queries, **blocks.options
        )
    return logits


def position_logits_backward(
    grad_logits: Tensor,
    q: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    grad_q: Tensor,
    shape: AttentionShape,
) -> tuple[Tensor, Tensor]:
    """Gradients of both R; adds what the logits of columns give q to ``grad_q``.

    ``grad_q`` is (B, H, W, C) contiguous, and has what the logits of rows give. Per axis this
    reads the gradients of the axis' logits and q, and writes a float32 (Q_a, K_a, d) per part of
    a line; the parts are added in fixed order. grad_q is read and written once.
    """
    grads = []
    for axis, rel in enumerate((rel_h, rel_w)):
        line = _line(q, rel, axis, shape)
        blocks = line_blocks(q.dtype, line["COLUMNS"], backward=True)
        tiles = triton.cdiv(line["length"], blocks.queries)
        parts = min(tiles, triton.cdiv(2 * PROCESSORS, rel.shape[0]))
        partial = torch.empty((parts, *rel.shape), dtype=accumulator_dtype(q), device=q.device)
        _backward_kernel[(parts, rel.shape[0])](
            q,
            rel.contiguous(),
            grad_logits,
            grad_q,
            partial,
            **line,
            tiles_of_part=triton.cdiv(tiles, parts),
            ADD=axis == 1,
            BLOCK=blocks.queries,
            **blocks.options,
        )
        grads.append(partial.sum(0).to(rel.dtype))
    return grads[0], grads[1]


def _line_length(q: Tensor, axis: int, shape: AttentionShape) -> int:
    """L, those counted that lines of the last, cut off window lack."""
    windows = triton.cdiv(q.shape[1 + axis], shape.window_q[axis])
    return q.shape[0] * windows * q.shape[2 - axis] * shape.heads


def _line(q: Tensor, rel: Tensor, axis: int, shape: AttentionShape) -> dict[str, Any]:
    """Arguments of the kernels: what an axis' lines are. "along" is the axis, "other" is not."""
    terms, second = term_columns(shape.window_kv)
    start, end = (0, second) if axis == 0 else (second, terms)
    height, width = q.shape[1:3]
    strides, token_strides = q.stride()[1:3], (width, 1)
    return {
        "length": _line_length(q, axis, shape),
        "size_along": (height, width)[axis],
        "size_other": (height, width)[1 - axis],
        "window": shape.window_q[axis],
        "q_b": q.stride(0),
        "q_along": strides[axis],
        "q_other": strides[1 - axis],
        "token_along": token_strides[axis],
        "token_other": token_strides[1 - axis],
        "tokens": height * width,
        "keys": rel.shape[1],
        "HEADS": shape.heads,
        "CHANNELS": rel.shape[2],
        "D": padded(rel.shape[2]),
        "T": terms,
        "START": start,
        "COLUMNS": end - start,
        "K": padded(end - start),
        **precision(q),
    }


@triton.jit
def _line_places(first, line, length, size_along, size_other, window, HEADS, BLOCK: tl.constexpr):
    """Image, place along and across the axis, and head of queries of a line; which there are.

    Heads are counted the fastest: they lie side by side in memory.
    """
    places = first + tl.arange(0, BLOCK)
    head = places % HEADS
    other = places // HEADS % size_other
    row = places // HEADS // size_other
    windows = tl.cdiv(size_along, window)
    along = row % windows * window + line
    inside = (places < length) & (along < size_along)
    return (row // windows).to(tl.int64), along.to(tl.int64), other.to(tl.int64), head, inside


@triton.jit
def _load_rel(rel, line, keys, CHANNELS: tl.constexpr, D: tl.constexpr, K: tl.constexpr):
    """(K, D): R of the queries of a line, padded with zeros."""
    key, channel = tl.arange(0, K)[:, None], tl.arange(0, D)[None, :]
    mask = (key < keys) & (channel < CHANNELS)
    return tl.load(rel + (line * keys + key) * CHANNELS + channel, mask=mask, other=0.0)


@triton.jit
def _logits_kernel(
    q,
    rel,
    logits,
    length,
    size_along,
    size_other,
    window,
    q_b,
    q_along,
    q_other,
    token_along,
    token_other,
    tokens,
    keys,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    T: tl.constexpr,
    START: tl.constexpr,
    COLUMNS: tl.constexpr,
    K: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of the queries of one line."""
    line = tl.program_id(1)
    image, along, other, head, inside = _line_places(
        tl.program_id(0) * BLOCK, line, length, size_along, size_other, window, HEADS, BLOCK
    )
    channel, column = tl.arange(0, D)[None, :], tl.arange(0, K)[None, :]
    at = image * q_b + along * q_along + other * q_other + head * CHANNELS
    queries = tl.load(
        q + at[:, None] + channel, mask=inside[:, None] & (channel < CHANNELS), other=0.0
    )
    along_keys = tl.trans(_load_rel(rel, line, keys, CHANNELS, D, K))
    found = product(queries, along_keys, tl.zeros((BLOCK, K), ACC), OPERAND)
    token = (image * HEADS + head) * tokens + along * token_along + other * token_other
    tl.store(
        logits + (token * T + START)[:, None] + column,
        found.to(logits.dtype.element_ty),
        mask=inside[:, None] & (column < COLUMNS),
    )


@triton.jit
def _backward_kernel(
    q,
    rel,
    grad_logits,
    grad_q,
    grad_rel,
    length,
    size_along,
    size_other,
    window,
    q_b,
    q_along,
    q_other,
    token_along,
    token_other,
    tokens,
    keys,
    tiles_of_part,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    T: tl.constexpr,
    START: tl.constexpr,
    COLUMNS: tl.constexpr,
    K: tl.constexpr,
    ACC: tl.constexpr,
    OPERAND: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A part of the queries of one line."""
    part, line = tl.program_id(0), tl.program_id(1)
    channel, column = tl.arange(0, D)[None, :], tl.arange(0, K)[None, :]
    along_keys = _load_rel(rel, line, keys, CHANNELS, D, K)
    total = tl.zeros((K, D), ACC)
    for tile in range(part * tiles_of_part, (part + 1) * tiles_of_part):
        image, along, other, head, inside = _line_places(
            tile * BLOCK, line, length, size_along, size_other, window, HEADS, BLOCK
        )
        mask = inside[:, None] & (channel < CHANNELS)
        at = image * q_b + along * q_along + other * q_other + head * CHANNELS
        queries = tl.load(q + at[:, None] + channel, mask=mask, other=0.0)
        place = along * token_along + other * token_other
        token = (image * HEADS + head) * tokens + place
        grad = tl.load(
            grad_logits + (token * T + START)[:, None] + column,
            mask=inside[:, None] & (column < COLUMNS),
            other=0.0,
        )
        if ADD:
            target = (
                grad_q + ((image * tokens + place) * HEADS + head)[:, None] * CHANNELS + channel
            )
            before = tl.load(target, mask=mask, other=0.0).to(ACC)
            after = before + product(grad, along_keys, tl.zeros((BLOCK, D), ACC), OPERAND)
            tl.store(target, after.to(grad_q.dtype.element_ty), mask=mask)
        total = product(tl.trans(grad), queries, total, OPERAND)
    key = tl.arange(0, K)[:, None]
    at = ((part * tl.num_programs(1) + line) * keys + key) * CHANNELS + channel
    tl.store(grad_rel + at, total, mask=(key < keys) & (channel < CHANNELS))
