"""Device functions of the attention kernels: places of queries and keys, and tiles of them.

A tile is a pair: (places, first) and (places, rest) of the columns of ``Tiles``, two powers of two.
Where there is no rest, the second is the first. A tile of a map has a head's channels. Queries and
keys are extended by terms, T columns that add to their product what is not of the channels:

    query: channels | logits of rows of keys / scale | logits of columns / scale | 0 | hidden
    key:   channels | 1 at the key's row             | 1 at its column           | 0 | 1 if hidden

Keys are packed window by window with their values: (B, h, windows, packed, columns of the extended
key and of the value), so that a loop over them neither divides nor masks.

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
def key_places(window, places, windows):
    """Places of keys of windows.

    Returns row and column on the map, row and column within the window, whether each lies on the
    map, and whether it belongs to the window, as padded keys do.
    """
    row, column = places // windows.key_columns, places % windows.key_columns
    y = window // windows.across * windows.key_rows + row
    x = window % windows.across * windows.key_columns + column
    in_window = row < windows.key_rows
    on_map = in_window & (y < windows.keys_height) & (x < windows.keys_width)
    return y, x, row, column, on_map, in_window


@triton.jit
def rows_of(pixels, image, head, y, x, CONST: tl.constexpr):
    """Pointers (places) to a head's channels on a map."""
    start = pixels.start + image * pixels.stride_b + head * CONST.channels
    return start + (y * pixels.stride_y + x * pixels.stride_x)


@triton.jit
def load_tile(rows, inside, CONST: tl.constexpr, TILES: tl.constexpr):
    """Loads a head's channels; zero where not ``inside``, and in columns that are no channels."""
    column = tl.arange(0, TILES.first)[None, :]
    known = inside[:, None] & (column < CONST.channels)
    tile = tl.load(rows[:, None] + column, mask=known, other=0.0)
    rest = tile
    if TILES.rest > 0:
        column = TILES.first + tl.arange(0, TILES.rest)[None, :]
        known = inside[:, None] & (column < CONST.channels)
        rest = tl.load(rows[:, None] + column, mask=known, other=0.0)
    return tile, rest


@triton.jit
def store_tile(rows, tile, inside, CONST: tl.constexpr, TILES: tl.constexpr):
    """Stores a tile's channels in the pointers' dtype, except what is not ``inside``."""
    column = tl.arange(0, TILES.first)[None, :]
    known = inside[:, None] & (column < CONST.channels)
    tl.store(rows[:, None] + column, tile[0].to(rows.dtype.element_ty), mask=known)
    if TILES.rest > 0:
        column = TILES.first + tl.arange(0, TILES.rest)[None, :]
        known = inside[:, None] & (column < CONST.channels)
        tl.store(rows[:, None] + column, tile[1].to(rows.dtype.element_ty), mask=known)


@triton.jit
def load_queries(rows, terms, tokens, inside, CONST: tl.constexpr):
    """Loads extended queries, whose terms are those of (places) tokens; zero outside."""
    FIRST: tl.constexpr = CONST.extended.first
    REST: tl.constexpr = CONST.extended.rest
    tile = _extended(rows, terms, tokens, inside, tl.arange(0, FIRST)[None, :], CONST)
    rest = tile
    if REST > 0:
        column = FIRST + tl.arange(0, REST)[None, :]
        rest = _extended(rows, terms, tokens, inside, column, CONST)
    return tile, rest


@triton.jit
def _extended(rows, terms, tokens, inside, column, CONST: tl.constexpr):
    term = column - CONST.channels
    if CONST.has_rel:
        # One load for both: what is loaded goes to shared memory without passing registers.
        at = tl.where(
            term < 0, rows[:, None] + column, terms + (tokens * CONST.terms)[:, None] + term
        )
        return tl.load(at, mask=inside[:, None], other=0.0)
    tile = tl.load(rows[:, None] + column, mask=inside[:, None] & (term < 0), other=0.0)
    hidden = tl.where(term == CONST.terms - 1, CONST.hidden, tile.to(CONST.accumulator))
    return hidden.to(tile.dtype)


@triton.jit
def window_start(packed_keys, plane, window, windows, CONST: tl.constexpr):
    """Pointer to the first packed key of a window, of one head and image."""
    before = plane.to(tl.int64) * windows.down * windows.across + window
    return packed_keys + before * windows.packed * CONST.row


@triton.jit
def load_packed(start, N: tl.constexpr, CONST: tl.constexpr, TILES: tl.constexpr):
    """Loads a tile of N packed keys or values, all columns of which are there."""
    at = start + (tl.arange(0, N) * CONST.row)[:, None]
    tile = tl.load(at + tl.arange(0, TILES.first)[None, :])
    rest = tile
    if TILES.rest > 0:
        rest = tl.load(at + (TILES.first + tl.arange(0, TILES.rest))[None, :])
    return tile, rest


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, DTYPE: tl.constexpr):
    """(ROWS, COLUMNS) of zeros; a function, since Triton 3.6 takes no fields in a shape."""
    return tl.zeros((ROWS, COLUMNS), DTYPE)


@triton.jit
def zero_tile(PLACES: tl.constexpr, CONST: tl.constexpr, TILES: tl.constexpr):
    """A tile of zeros to accumulate in."""
    FIRST: tl.constexpr = TILES.first
    REST: tl.constexpr = TILES.rest
    tile = zeros(PLACES, FIRST, CONST.accumulator)
    rest = tile
    if REST > 0:
        rest = zeros(PLACES, REST, CONST.accumulator)
    return tile, rest


@triton.jit
def scaled(tile, factor):
    """A tile times a scalar, or times a (places, 1) column."""
    return tile[0] * factor, tile[1] * factor


@triton.jit
def scaled_channels(tile, CONST: tl.constexpr):
    """A tile with its channels scaled, and its terms as they are."""
    FIRST: tl.constexpr = CONST.extended.first
    REST: tl.constexpr = CONST.extended.rest
    first, rest = tile
    known = tl.arange(0, FIRST)[None, :] < CONST.channels
    first = tl.where(known, first * CONST.scale, first)
    if REST > 0:
        known = FIRST + tl.arange(0, REST)[None, :] < CONST.channels
        rest = tl.where(known, rest * CONST.scale, rest)
    return first, rest


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
def product_over_columns(a, b, CONST: tl.constexpr, TILES: tl.constexpr):
    """a @ bᵀ of two tiles: (places of a, places of b)."""
    acc = tl.zeros((a[0].shape[0], b[0].shape[0]), CONST.accumulator)
    acc = product(a[0], tl.trans(b[0]), acc, CONST.operand)
    if TILES.rest > 0:
        acc = product(a[1], tl.trans(b[1]), acc, CONST.operand)
    return acc


@triton.jit
def in_base_2(scores, CONST: tl.constexpr):
    """Scores as exponents of 2; in float32 by two factors, whose rounding errors are smaller."""
    if CONST.operand == tl.float32:
        scores *= CONST.scale
        return scores * LOG2_E
    return scores * (CONST.scale * LOG2_E)


@triton.jit
def product_over_places(weights, tile, acc, CONST: tl.constexpr, TILES: tl.constexpr):
    """acc + weights @ tile, a tile."""
    total = product(weights, tile[0], acc[0], CONST.operand)
    rest = acc[1]
    if TILES.rest > 0:
        rest = product(weights, tile[1], rest, CONST.operand)
    return total, rest
