"""What the attention kernels share: where queries and keys of a window lie, and tiles of maps.

Axes: B images, H × W tokens of a map, C = h·d channels of h heads, d split into D and a rest
(powers of two, padded), M queries and N keys of a block, K_h × K_w keys of a window, T columns of
position logits.

Offsets within a map are 32 bits wide, for registers' sake; those of maps and images are 64.
"""

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..shape import AttentionShape

LOG2_E = tl.constexpr(1.4426950408889634)
PROCESSORS = 132  # of an H100; a constant, so that sums are split in the same way everywhere
_MIN_DOT = 16  # the smallest side of a product on tensor cores


@dataclass(frozen=True)
class Blocks:
    """How a kernel is launched: queries and keys of a tile, warps, stages of its pipeline.

    ``registers`` of a thread are capped where one more program then fits on a processor.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """Of a launch."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options if self.registers is None else {**options, "maxnreg": self.registers}


def padded(size: int) -> int:
    """The power of two that a side of a product is padded to."""
    return max(triton.next_power_of_2(size), _MIN_DOT)


def channel_tiles(channels: int) -> tuple[int, int]:
    """The sizes that a head's channels are split into: powers of two, the second may be 0.

    96 channels are 64 and 32, 72 are 64 and 16: products of 128 would waste a quarter or more of
    tensor cores and registers.
    """
    whole = padded(channels)
    first = whole // 2
    rest = padded(channels - first)
    return (first, rest) if first >= _MIN_DOT and first + rest < whole else (whole, 0)


def precision(x: Tensor) -> dict[str, object]:
    """The dtype of accumulators, and that of products' operands.

    Triton's interpreter multiplies the bits of bfloat16 as integers. There operands are widened
    to float32, which changes no product.
    """
    accumulator = tl.float64 if x.dtype == torch.float64 else tl.float32
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    operand = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(x.dtype, accumulator)
    if interpreted and x.dtype == torch.bfloat16:
        operand = tl.float32
    return {"ACC": accumulator, "OPERAND": operand}


def accumulator_dtype(x: Tensor) -> torch.dtype:
    """Of log-sum-exps and partial sums: float64 for float64, float32 otherwise."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def map_strides(**maps: Tensor) -> dict[str, int]:
    """Arguments ``{name}_b``, ``{name}_y`` and ``{name}_x`` of a kernel for (B, H, W, C) maps."""
    return {
        f"{name}_{axis}": stride
        for name, tensor in maps.items()
        for axis, stride in zip("byx", tensor.stride(), strict=False)
    }


def sizes(q: Tensor, k: Tensor, shape: AttentionShape) -> dict[str, int]:
    """Arguments of the kernels that say how the windows lie over the maps."""
    (height, width), (keys_height, keys_width) = q.shape[1:3], k.shape[1:3]
    rows, columns = shape.window_q
    key_rows, key_columns = shape.window_kv
    return {
        "height": height,
        "width": width,
        "rows": rows,
        "columns": columns,
        "keys_height": keys_height,
        "keys_width": keys_width,
        "key_rows": key_rows,
        "key_columns": key_columns,
        "windows_across": triton.cdiv(width, columns),
    }


def window_count(q: Tensor, shape: AttentionShape) -> int:
    """Windows of one map."""
    (height, width), (rows, columns) = q.shape[1:3], shape.window_q
    return triton.cdiv(height, rows) * triton.cdiv(width, columns)


def most_queries(q: Tensor, shape: AttentionShape) -> int:
    """Queries of the window that has the most of them on the map: the first."""
    return min(q.shape[1], shape.window_q[0]) * min(q.shape[2], shape.window_q[1])


@triton.jit
def query_places(window, first, height, width, rows, columns, windows_across, M: tl.constexpr):
    """Row and column on the map of M queries of a window, and which of them there are.

    Queries are counted over the part of the window that lies on the map, row by row.
    """
    top = window // windows_across * rows
    left = window % windows_across * columns
    inside_rows = tl.minimum(rows, height - top)
    inside_columns = tl.minimum(columns, width - left)
    places = first + tl.arange(0, M)
    y, x = top + places // inside_columns, left + places % inside_columns
    return y, x, places < inside_rows * inside_columns


@triton.jit
def query_count(window, height, width, rows, columns, windows_across):
    """How many queries of the window lie on the map."""
    inside_rows = tl.minimum(rows, height - window // windows_across * rows)
    return inside_rows * tl.minimum(columns, width - window % windows_across * columns)


@triton.jit
def key_places(
    window, first, keys_height, keys_width, key_rows, key_columns, windows_across, N: tl.constexpr
):
    """Of N keys of a window: row and column on the map and within the window; which are on the
    map; which are of the window, padded ones among them."""
    places = first + tl.arange(0, N)
    row, column = places // key_columns, places % key_columns
    y = window // windows_across * key_rows + row
    x = window % windows_across * key_columns + column
    real = (row < key_rows) & (y < keys_height) & (x < keys_width)
    return y, x, row, column, real, row < key_rows


@triton.jit
def tile_offsets(y, x, stride_y, stride_x, D: tl.constexpr):
    """(places, D) offsets within a map."""
    return (y * stride_y + x * stride_x)[:, None] + tl.arange(0, D)[None, :]


@triton.jit
def load_tile(
    start,
    y,
    x,
    stride_y,
    stride_x,
    inside,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    REST: tl.constexpr,
):
    """(places, D) and (places, REST) of the map that begins at ``start``, channels of a head.

    0 outside and in padded channels. Without a rest the second is the first.
    """
    at = start + tile_offsets(y, x, stride_y, stride_x, D)
    mask = inside[:, None] & (tl.arange(0, D) < CHANNELS)[None, :]
    tile = tl.load(at, mask=mask, other=0.0)
    rest = tile
    if REST > 0:
        at = start + D + tile_offsets(y, x, stride_y, stride_x, REST)
        mask = inside[:, None] & (tl.arange(0, REST) < CHANNELS - D)[None, :]
        rest = tl.load(at, mask=mask, other=0.0)
    return tile, rest


@triton.jit
def store_tile(
    start,
    tile,
    rest,
    y,
    x,
    stride_y,
    stride_x,
    inside,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    REST: tl.constexpr,
):
    """The inverse of :func:`load_tile`; what lies outside is dropped."""
    at = start + tile_offsets(y, x, stride_y, stride_x, D)
    mask = inside[:, None] & (tl.arange(0, D) < CHANNELS)[None, :]
    tl.store(at, tile.to(start.dtype.element_ty), mask=mask)
    if REST > 0:
        at = start + D + tile_offsets(y, x, stride_y, stride_x, REST)
        mask = inside[:, None] & (tl.arange(0, REST) < CHANNELS - D)[None, :]
        tl.store(at, rest.to(start.dtype.element_ty), mask=mask)


@triton.jit
def empty_tile(SIDE: tl.constexpr, D: tl.constexpr, REST: tl.constexpr, ACC: tl.constexpr):
    """Accumulators (SIDE, D) and (SIDE, REST) of zeros."""
    tile = tl.zeros((SIDE, D), ACC)
    rest = tile
    if REST > 0:
        rest = tl.zeros((SIDE, REST), ACC)
    return tile, rest


@triton.jit
def product(a, b, acc, OPERAND: tl.constexpr):
    """acc + a @ b; exact products of float32 rather than tf32.

    Not all supported versions of tl.dot have float64, in which only small sizes are checked.
    """
    if acc.dtype == tl.float64:
        acc += tl.sum(a.to(OPERAND)[:, :, None] * b.to(OPERAND)[None, :, :], 1)
    else:
        acc = tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision="ieee")
    return acc


@triton.jit
def product_over_channels(
    a, a_rest, b, b_rest, REST: tl.constexpr, ACC: tl.constexpr, OPERAND: tl.constexpr
):
    """a @ bᵀ of two tiles of maps."""
    acc = product(a, tl.trans(b), tl.zeros((a.shape[0], b.shape[0]), ACC), OPERAND)
    if REST > 0:
        acc = product(a_rest, tl.trans(b_rest), acc, OPERAND)
    return acc


@triton.jit
def product_over_places(
    weights, b, b_rest, acc, acc_rest, REST: tl.constexpr, OPERAND: tl.constexpr
):
    """acc + weights @ b for a tile of a map."""
    acc = product(weights, b, acc, OPERAND)
    if REST > 0:
        acc_rest = product(weights, b_rest, acc_rest, OPERAND)
    return acc, acc_rest


@triton.jit
def one_hot(row, column, SECOND: tl.constexpr, T: tl.constexpr, OPERAND: tl.constexpr):
    """(T, N): which columns of the position logits belong to each key, one per axis."""
    terms = tl.arange(0, T)[:, None]
    return ((terms == row[None, :]) | (terms == column[None, :] + SECOND)).to(OPERAND)
