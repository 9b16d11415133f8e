"""Arguments of the attention kernels: constants, sizes of windows, and checks of the tensors.

Axes: B images, Hq × Wq queries and Hk × Wk keys of a map, C = h·d channels of h heads, Q_a queries
and K_a keys along axis a of a window.
"""

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..shape import AttentionShape
from .axis_tables import AxisTable
from .launch import Blocks, accumulator, ceil_div, channel_tiles, operand, padded
from .tile_table import FEW_KEYS, Case

MAX_CHANNELS = 128  # of a head: a tile of them is in registers
MAX_KEYS_ALONG = 256  # rows and columns of a window: a query's terms are in shared memory


class Windows(NamedTuple):
    """Sizes of the maps of queries and keys, and of the windows over them.

    They differ from image to image. Triton compiles a kernel anew for some values of integers, also
    where ``do_not_specialize`` names the tuple that they lie in. Kernels therefore take them one by
    one, and make the tuple again.
    """

    images: int
    heads: int
    height: int
    width: int
    rows: int
    columns: int
    keys_height: int
    keys_width: int
    key_rows: int
    key_columns: int
    down: int  # windows below each other
    across: int  # windows side by side
    most: int  # queries on the map of the first window, which has the most
    packed: int  # keys of a window with those that fill its last block
    second: int  # first term of the second axis

    @classmethod
    def of(cls, q: Tensor, k: Tensor, shape: AttentionShape, block: int) -> "Windows":
        """The windows of ``shape`` over (B, Hq, Wq, C) queries and (B, Hk, Wk, C) keys."""
        sides = *q.shape[1:3], *shape.window_q, *k.shape[1:3], *shape.window_kv
        (height, rows), (width, columns) = zip(q.shape[1:3], shape.window_q, strict=True)
        counts = ceil_div(height, rows), ceil_div(width, columns)
        most = min(height, rows) * min(width, columns)
        packed = ceil_div(shape.window_kv[0] * shape.window_kv[1], block) * block
        second = extended_tiles(q.shape[3] // shape.heads, shape.window_kv)[1]
        return cls(len(q), shape.heads, *sides, *counts, most, packed, second)


class Tiles(NamedTuple):
    """Two powers of two that a row of channels is split into; the second is 0 where one does."""

    first: int
    rest: int


class AttentionConstants(NamedTuple):
    """Constants that the attention kernels are compiled for, apart from the sizes of blocks."""

    scale: float
    channels: int  # of a head
    d: int  # of a head, padded to one power of two
    own: Tiles  # of a head's channels
    extended: Tiles  # of those and the terms
    row: int  # columns of a packed key and its value
    terms: int  # T
    axis_terms: int  # of an axis, padded
    has_rel: bool  # whether there are position logits
    hidden: float  # what a query adds to the score of a key that it must not see
    residual: bool
    masked: bool  # whether padded keys are hidden
    accumulator: tl.dtype
    operand: tl.dtype

    @classmethod
    def of(cls, q: Tensor, shape: AttentionShape, *, has_rel: bool) -> "AttentionConstants":
        """The constants of an attention on (B, Hq, Wq, C) queries."""
        channels = q.shape[-1] // shape.heads
        own = Tiles(*channel_tiles(channels))
        extended, second = extended_tiles(channels, shape.window_kv if has_rel else (0, 0))
        terms = sum(extended) - channels
        return cls(
            shape.scale, channels, padded(channels), own, extended, sum(extended + own), terms,
            padded(max(second, terms - second)), has_rel,
            max(torch.finfo(q.dtype).min / 2, -1e30), shape.residual, shape.mask_padding,
            accumulator(q), operand(q),
        )  # fmt: skip

    def of_products(self) -> "AttentionConstants":
        """Constants for kernels that do not tell the axes apart: fewer are then compiled."""
        return self._replace(axis_terms=0)


def extended_tiles(channels: int, window_kv: tuple[int, int]) -> tuple[Tiles, int]:
    """Tiles of channels and terms, and which term is the first of the second axis.

    Terms are the rows of keys, their columns, and a last one of hidden keys. Each axis has half of
    them where that is room enough: both products of the position logits are then small.
    """
    rows, columns = window_kv
    tiles = Tiles(*channel_tiles(channels + rows + columns + 1, least=32))
    half = (sum(tiles) - channels) // 2
    return tiles, half if rows and max(rows, columns + 1) <= half else rows


def case_of(q: Tensor, constants: AttentionConstants, shape: AttentionShape) -> Case:
    """What the blocks of an attention depend on."""
    few_keys = shape.window_kv[0] * shape.window_kv[1] <= FEW_KEYS
    return Case(q.dtype, constants.channels, constants.terms, few_keys)


def query_grid(windows: Windows, blocks: Blocks) -> tuple[int, int, int]:
    """Grid of a kernel with one program for each block of queries, window, and image's head."""
    tiles, planes = ceil_div(windows.most, blocks.queries), windows.images * windows.heads
    return tiles, windows.down * windows.across, planes


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
