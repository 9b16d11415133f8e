"""Arguments of the attention kernels: constants, sizes of windows, and checks of the tensors.

Axes: B images, Hq × Wq queries and Hk × Wk keys of a map, C = h·d channels of h heads, Q_a queries
and K_a keys along axis a of a window.
"""

from typing import NamedTuple

import triton.language as tl
from torch import Tensor

from ..shape import AttentionShape
from .axis_tables import AxisTable
from .launch import Blocks, accumulator, ceil_div, channel_tiles, operand
from .logits import term_columns
from .tile_table import FEW_KEYS, Case

MAX_CHANNELS = 128  # of a head: a tile of them is in registers
MAX_KEYS_ALONG = 256  # rows and columns of a window: their logits are in shared memory


class Windows(NamedTuple):
    """Sizes of the maps of queries and keys, and of the windows over them.

    They differ from image to image. Triton compiles a kernel anew for some values of integers, also
    where ``do_not_specialize`` names the tuple that they lie in. Kernels therefore take them one by
    one, and make the tuple again.
    """

    height: int
    width: int
    rows: int
    columns: int
    keys_height: int
    keys_width: int
    key_rows: int
    key_columns: int
    across: int  # windows side by side
    heads: int
    second: int  # first column of the logits of columns of keys

    @classmethod
    def of(cls, q: Tensor, k: Tensor, shape: AttentionShape) -> "Windows":
        """The windows of ``shape`` over (B, Hq, Wq, C) queries and (B, Hk, Wk, C) keys."""
        across = ceil_div(q.shape[2], shape.window_q[1])
        sides = *q.shape[1:3], *shape.window_q, *k.shape[1:3], *shape.window_kv
        return cls(*sides, across, shape.heads, term_columns(shape.window_kv)[1])


class AttentionConstants(NamedTuple):
    """Constants that the attention kernels are compiled for, apart from the sizes of blocks."""

    scale: float
    channels: int  # of a head
    first: int  # size of the first tile of channels
    rest: int  # size of the second tile of channels, 0 for none
    terms: int  # columns of the position logits, 0 for none
    residual: bool
    masked: bool  # whether padded keys are hidden
    accumulator: tl.dtype
    operand: tl.dtype

    @classmethod
    def of(cls, q: Tensor, shape: AttentionShape, *, has_rel: bool) -> "AttentionConstants":
        """The constants of an attention on (B, Hq, Wq, C) queries."""
        channels = q.shape[-1] // shape.heads
        tiles = channel_tiles(channels)
        terms = term_columns(shape.window_kv)[0] if has_rel else 0
        options = shape.residual, shape.mask_padding, accumulator(q), operand(q)
        return cls(shape.scale, channels, *tiles, terms, *options)


def case_of(q: Tensor, constants: AttentionConstants, shape: AttentionShape) -> Case:
    """What the blocks of an attention depend on."""
    few_keys = shape.window_kv[0] * shape.window_kv[1] <= FEW_KEYS
    return Case(q.dtype, constants.channels, constants.terms, few_keys)


def window_count(q: Tensor, shape: AttentionShape) -> int:
    """Number of windows of one map."""
    (height, width), (rows, columns) = q.shape[1:3], shape.window_q
    return ceil_div(height, rows) * ceil_div(width, columns)


def most_queries(q: Tensor, shape: AttentionShape) -> int:
    """Number of queries on the map of the first window, which has the most."""
    return min(q.shape[1], shape.window_q[0]) * min(q.shape[2], shape.window_q[1])


def query_grid(q: Tensor, shape: AttentionShape, blocks: Blocks) -> tuple[int, int, int]:
    """Grid of a kernel with one program for each block of queries, window, and image's head."""
    tiles = ceil_div(most_queries(q, shape), blocks.queries)
    return tiles, window_count(q, shape), q.shape[0] * shape.heads


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_h: AxisTable | None,
    rel_w: AxisTable | None,
    shape: AttentionShape,
) -> None:
    """Checks that the attention kernels can run on these tensors.

    Raises:
        ValueError: sizes, windows, dtypes or strides do not fit together.
    """
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
    if channels > MAX_CHANNELS:
        raise ValueError(f"heads have at most {MAX_CHANNELS} channels, got {channels}")
    if len({tensor.dtype for tensor in (q, k, v)}) > 1:
        raise ValueError(f"one dtype for all, got {[tensor.dtype for tensor in (q, k, v)]}")
    if any(tensor.stride(3) != 1 for tensor in (q, k, v)):
        raise ValueError("channels of q, k and v must be contiguous")
    if any(_span(tensor) >= 2**31 for tensor in (q, k, v)):
        raise ValueError("one image's q, k or v spans over 2³¹ elements")
    _check_windows(q, k, shape)
    _check_embeddings(rel_h, rel_w, channels, shape)


def _span(x: Tensor) -> int:
    """Elements from the first to the last of one image."""
    return sum(
        (size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True)
    )


def _check_windows(q: Tensor, k: Tensor, shape: AttentionShape) -> None:
    for axis, (queries, keys) in enumerate(zip(shape.window_q, shape.window_kv, strict=True)):
        counts = ceil_div(q.shape[1 + axis], queries), ceil_div(k.shape[1 + axis], keys)
        if counts[0] != counts[1]:
            raise ValueError(
                f"q has {counts[0]} windows along axis {axis} and k {counts[1]}: maps "
                f"{tuple(q.shape)} and {tuple(k.shape)}, windows of {queries} and {keys}"
            )


def _check_embeddings(
    rel_h: AxisTable | None, rel_w: AxisTable | None, channels: int, shape: AttentionShape
) -> None:
    if (rel_h is None) != (rel_w is None):
        raise ValueError("rel_h and rel_w come together")
    if rel_h is None or rel_w is None:
        return
    if sum(shape.window_kv) > MAX_KEYS_ALONG:
        raise ValueError(
            f"position logits are for {MAX_KEYS_ALONG} rows and columns of keys together, "
            f"got {shape.window_kv}"
        )
    for axis, rel in enumerate((rel_h, rel_w)):
        wanted = (shape.window_q[axis], shape.window_kv[axis], channels)
        got = (*rel.rows.shape, rel.table.shape[1])
        if got != wanted:
            raise ValueError(f"R of axis {axis} must be {wanted}, got {got}")
