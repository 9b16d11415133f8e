"""Device functions of the attention kernels: places of queries and keys, and tiles of maps.

A tile of a map is a pair: (places, first) and (places, rest) of a head's channels, which are split
into two powers of two (``launch.channel_tiles``). Where there is no rest, the second is the first.

``CONST`` is an ``AttentionConstants``, ``windows`` a ``Windows``. Offsets within a map are 32 bits
wide, to save registers; those of maps and images are 64.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def query_places(window, start, windows, M: tl.constexpr):
    """Row and column on the map of M queries of a window, and whether each exists.

    Queries are counted over the part of the window that lies on the map, row by row.
    """
    top = window // windows.across * windows.rows
    left = window % windows.across * windows.columns
    rows = tl.minimum(windows.rows, windows.height - top)
    columns = tl.minimum(windows.columns, windows.width - left)
    places = start + tl.arange(0, M)
    return top + places // columns, left + places % columns, places < rows * columns


@triton.jit
def query_count(window, windows):
    """Number of queries of the window that lie on the map."""
    rows = tl.minimum(windows.rows, windows.height - window // windows.across * windows.rows)
    left = window % windows.across * windows.columns
    return rows * tl.minimum(windows.columns, windows.width - left)


@triton.jit
def key_places(window, start, windows, N: tl.constexpr):
    """Places of N keys of a window.

    Returns row and column on the map, row and column within the window, whether each lies on the
    map, and whether it belongs to the window, as padded keys do.
    """
    places = start + tl.arange(0, N)
    row, column = places // windows.key_columns, places % windows.key_columns
    y = window // windows.across * windows.key_rows + row
    x = window % windows.across * windows.key_columns + column
    in_window = row < windows.key_rows
    on_map = in_window & (y < windows.keys_height) & (x < windows.keys_width)
    return y, x, row, column, on_map, in_window


@triton.jit
def head_start(pixels, image, head, CONST: tl.constexpr):
    """Pointer to a head's channels at the first place of an image."""
    return pixels.start + image * pixels.stride_b + head * CONST.channels


@triton.jit
def _tile_offsets(y, x, stride_y, stride_x, D: tl.constexpr):
    """(places, D) offsets within a map."""
    return (y * stride_y + x * stride_x)[:, None] + tl.arange(0, D)[None, :]


@triton.jit
def load_tile(start, y, x, stride_y, stride_x, inside, CONST: tl.constexpr):
    """Loads a tile; zero where not ``inside``, and in padded channels."""
    at = start + _tile_offsets(y, x, stride_y, stride_x, CONST.first)
    mask = inside[:, None] & (tl.arange(0, CONST.first) < CONST.channels)[None, :]
    tile = tl.load(at, mask=mask, other=0.0)
    rest = tile
    if CONST.rest > 0:
        at = start + CONST.first + _tile_offsets(y, x, stride_y, stride_x, CONST.rest)
        known = tl.arange(0, CONST.rest) < CONST.channels - CONST.first
        rest = tl.load(at, mask=inside[:, None] & known[None, :], other=0.0)
    return tile, rest


@triton.jit
def store_tile(start, tile, y, x, stride_y, stride_x, inside, CONST: tl.constexpr):
    """Stores a tile in the pointer's dtype, except what is not ``inside``."""
    at = start + _tile_offsets(y, x, stride_y, stride_x, CONST.first)
    mask = inside[:, None] & (tl.arange(0, CONST.first) < CONST.channels)[None, :]
    tl.store(at, tile[0].to(start.dtype.element_ty), mask=mask)
    if CONST.rest > 0:
        at = start + CONST.first + _tile_offsets(y, x, stride_y, stride_x, CONST.rest)
        known = tl.arange(0, CONST.rest) < CONST.channels - CONST.first
        tl.store(at, tile[1].to(start.dtype.element_ty), mask=inside[:, None] & known[None, :])


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    """(ROWS, COLUMNS) of zeros; a function, since Triton 3.6 takes no fields in a shape."""
    return tl.zeros((ROWS, COLUMNS), DTYPE)


@triton.jit
def zero_tile(PLACES: tl.constexpr, CONST: tl.constexpr):
    """A tile of zeros to accumulate in."""
    tile = zeros(PLACES, CONST.first, CONST.accumulator)
    rest = tile
    if CONST.rest > 0:
        rest = zeros(PLACES, CONST.rest, CONST.accumulator)
    return tile, rest


@triton.jit
def scaled(tile, factor):
    """A tile times a scalar, or times a (places, 1) column."""
    return tile[0] * factor, tile[1] * factor


@triton.jit
def added(tile, other, CONST: tl.constexpr):
    """The sum of an accumulated tile and a loaded one."""
    return tile[0] + other[0].to(CONST.accumulator), tile[1] + other[1].to(CONST.accumulator)


@triton.jit
def product(a, b, acc, OPERAND: tl.constexpr):
    """acc + a @ b; float32 is multiplied exactly rather than as tf32.

    Not all supported versions of tl.dot have float64, in which only small sizes are checked.
    """
    if acc.dtype == tl.float64:
        acc += tl.sum(a.to(OPERAND)[:, :, None] * b.to(OPERAND)[None, :, :], 1)
    else:
        acc = tl.dot(a.to(OPERAND), b.to(OPERAND), acc, input_precision="ieee")
    return acc


@triton.jit
def product_over_channels(a, b, CONST: tl.constexpr):
    """a @ bᵀ of two tiles: (places of a, places of b)."""
    acc = tl.zeros((a[0].shape[0], b[0].shape[0]), CONST.accumulator)
    acc = product(a[0], tl.trans(b[0]), acc, CONST.operand)
    if CONST.rest > 0:
        acc = product(a[1], tl.trans(b[1]), acc, CONST.operand)
    return acc


@triton.jit
def product_over_places(weights, tile, acc, CONST: tl.constexpr):
    """acc + weights @ tile, a tile."""
    total = product(weights, tile[0], acc[0], CONST.operand)
    rest = acc[1]
    if CONST.rest > 0:
        rest = product(weights, tile[1], rest, CONST.operand)
    return total, rest


@triton.jit
def one_hot(row, column, second, CONST: tl.constexpr):
    """(T, N) ones where a column of the position logits belongs to a key, one for each axis."""
    terms = tl.arange(0, CONST.terms)[:, None]
    places = (terms == row[None, :]) | (terms == column[None, :] + second)
    return places.to(CONST.operand)
