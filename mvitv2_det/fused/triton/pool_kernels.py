"""Device functions of :mod:`.pool`: each program computes one head at one tile of places.

Programs are numbered q's first, then k's, then v's, the heads of a tile next to each other, as
they are in memory. Offsets of images and tiles are 64 bits wide, those within a tile 32.

``CONST`` is a :class:`PoolConstants`, ``sizes`` a :class:`PoolSizes` and ``strides`` an
:class:`InputStrides`. A part is q, k or v: 0, 1 or 2. Fields of constants that Triton 3.6 does
not take as they are (shapes, static ranges) are constants of a function first.

Axes: d channels of a head, padded to D, P places of a tile, T taps of the convolution.
"""

from typing import NamedTuple

import triton
import triton.language as tl


class PoolSizes(NamedTuple):
    """Sizes that differ from step to step.

    Kernels take the numbers one by one: see ``attention_arguments.Windows``.
    """

    start_k: int  # the first program of k, and of v
    start_v: int
    heads: int
    height: int  # before pooling
    width: int
    height_q: int  # of pooled q, k and v
    height_k: int
    height_v: int
    width_q: int
    width_k: int
    width_v: int
    stride_q: int
    stride_k: int
    stride_v: int


class InputStrides(NamedTuple):
    """Strides of the projection (B, H, W, 3·C), and C, the distance of its parts."""

    b: int
    y: int
    x: int
    part: int


class PoolConstants(NamedTuple):
    """Constants that the kernels are compiled for."""

    channels: int
    kernel_h: int
    kernel_w: int
    padding_h: int
    padding_w: int
    eps: float
    d: int
    tile_h: int
    tile_w: int
    accumulator: tl.dtype


@triton.jit
def _select(part, values):
    """The part's one of three values or pointers."""
    return tl.where(part == 0, values[0], tl.where(part == 1, values[1], values[2]))


@triton.jit
def _part_of(program, sizes):
    """The program's part, and the program's number within the part."""
    part = (program >= sizes.start_k).to(tl.int32) + (program >= sizes.start_v).to(tl.int32)
    first = tl.where(part == 0, 0, tl.where(part == 1, sizes.start_k, sizes.start_v))
    return part, program - first


@triton.jit
def _tile_start(index, heads, height, width, CONST: tl.constexpr):
    """Head, image, and first row and column of a tile of a height × width map."""
    across = tl.cdiv(width, CONST.tile_w)
    down = tl.cdiv(height, CONST.tile_h)
    tile = index // heads
    row = tile // across % down * CONST.tile_h
    image = (tile // (across * down)).to(tl.int64)
    return index % heads, image, row, tile % across * CONST.tile_w


@triton.jit
def _tile_places(CONST: tl.constexpr):
    """Rows and columns (P) of a tile's places within it."""
    places = tl.arange(0, CONST.tile_h * CONST.tile_w)
    return places // CONST.tile_w, places % CONST.tile_w


@triton.jit
def _no_values(CONST: tl.constexpr):
    """(P, D) zeros."""
    P: tl.constexpr = CONST.tile_h * CONST.tile_w
    D: tl.constexpr = CONST.d
    return tl.zeros((P, D), CONST.accumulator)


@triton.jit
def _load_tap(corner, row, column, valid, a, b, sizes, strides):
    """(P, D) values at tap (a, b) of the convolution, which starts at ``row`` and ``column``."""
    in_rows = (row + a >= 0) & (row + a < sizes.height)
    in_columns = (column + b >= 0) & (column + b < sizes.width)
    mask = (in_rows & in_columns)[:, None] & valid
    return tl.load(corner + (a * strides.y + b * strides.x), mask=mask, other=0)


@triton.jit
def _convolve(
    corner, row, column, valid, weights, channels, known, sizes, strides, CONST: tl.constexpr
):  # fmt: skip
    """(P, D) outputs of the convolution, zero where not ``valid``."""
    total = _no_values(CONST)
    KERNEL_H: tl.constexpr = CONST.kernel_h
    KERNEL_W: tl.constexpr = CONST.kernel_w
    for a in tl.static_range(KERNEL_H):
        for b in tl.static_range(KERNEL_W):
            at = (a * CONST.kernel_w + b) * CONST.channels
            tap = tl.load(weights + at + channels, mask=known, other=0)
            x = _load_tap(corner, row, column, valid, a, b, sizes, strides)
            total += x.to(CONST.accumulator) * tap.to(CONST.accumulator)[None, :]
    return total


@triton.jit
def _normalise(x, known, inside, CONST: tl.constexpr):
    """(P, D) values of mean 0 and variance 1 at each place, and the (P) factors to variance 1."""
    mean = tl.sum(x, 1) / CONST.channels
    x = tl.where(known[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(x * x, 1) / CONST.channels
    # Outside of the map the variance is 0, and NaN if there is no eps.
    factor = tl.rsqrt(tl.where(inside, variance + CONST.eps, 1.0))
    return x * factor[:, None], factor


@triton.jit
def _input_places(
    qkv, part, image, head, top, left, row, column, channels, stride, strides, CONST: tl.constexpr
):  # fmt: skip
    """Pointers (P, D) to the first tap of each place, and the taps' rows and columns (P)."""
    top, left = top * stride - CONST.padding_h, left * stride - CONST.padding_w
    corner = qkv + image * strides.b + top.to(tl.int64) * strides.y
    corner += left.to(tl.int64) * strides.x + part * strides.part + head * CONST.channels
    at = row * stride * strides.y + column * stride * strides.x
    corner = corner + (at[:, None] + channels[None, :])
    return corner, row * stride + top, column * stride + left


@triton.jit(do_not_specialize=PoolSizes._fields)
def pool_forward_kernel(
    qkv, parameters, outputs, start_k, start_v, heads, height, width,
    height_q, height_k, height_v, width_q, width_k, width_v, stride_q, stride_k, stride_v,
    strides, CONST: tl.constexpr,
):  # fmt: skip
    """Pooled and normalised q, k and v; a program for each tile of pooled places."""
    sizes = PoolSizes(
        start_k, start_v, heads, height, width, height_q, height_k, height_v,
        width_q, width_k, width_v, stride_q, stride_k, stride_v,
    )  # fmt: skip
    part, index = _part_of(tl.program_id(0), sizes)
    out = _select(part, outputs)
    height, width = (
        _select(part, (height_q, height_k, height_v)),
        _select(part, (width_q, width_k, width_v)),
    )
    stride = _select(part, (stride_q, stride_k, stride_v))
    head, image, top, left = _tile_start(index, sizes.heads, height, width, CONST)
    row, column = _tile_places(CONST)
    channels = tl.arange(0, CONST.d)
    known = channels < CONST.channels
    inside = (row < height - top) & (column < width - left)
    valid = inside[:, None] & known[None, :]

    corner, in_row, in_column = _input_places(
        qkv, part, image, head, top, left, row, column, channels, stride, strides, CONST
    )
    taps: tl.constexpr = CONST.kernel_h * CONST.kernel_w
    parameters += part * (taps + 2) * CONST.channels
    x = _convolve(
        corner, in_row, in_column, valid, parameters, channels, known, sizes, strides, CONST
    )
    x, _ = _normalise(x, known, inside, CONST)

    weight = tl.load(parameters + taps * CONST.channels + channels, mask=known, other=0)
    bias = tl.load(parameters + (taps + 1) * CONST.channels + channels, mask=known, other=0)
    x = x * weight.to(CONST.accumulator)[None, :] + bias.to(CONST.accumulator)[None, :]
    out += ((image * height + top) * width + left) * strides.part + head * CONST.channels
    at = (row * width + column) * strides.part
    tl.store(out + (at[:, None] + channels[None, :]), x.to(out.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=PoolSizes._fields)
def pool_backward_kernel(
    qkv, parameters, grads, grads_convolved, partial, start_k, start_v, heads, height, width,
    height_q, height_k, height_v, width_q, width_k, width_v, stride_q, stride_k, stride_v,
    strides, CONST: tl.constexpr,
):  # fmt: skip
    """Gradients of the convolutions' outputs, and each program's part of the parameters'.

    ``partial`` is (programs, T + 2, d), in the order of ``parameters``.
    """
    sizes = PoolSizes(
        start_k, start_v, heads, height, width, height_q, height_k, height_v,
        width_q, width_k, width_v, stride_q, stride_k, stride_v,
    )  # fmt: skip
    part, index = _part_of(tl.program_id(0), sizes)
    height, width = (
        _select(part, (height_q, height_k, height_v)),
        _select(part, (width_q, width_k, width_v)),
    )
    stride = _select(part, (stride_q, stride_k, stride_v))
    head, image, top, left = _tile_start(index, sizes.heads, height, width, CONST)
    row, column = _tile_places(CONST)
    channels = tl.arange(0, CONST.d)
    known = channels < CONST.channels
    inside = (row < height - top) & (column < width - left)
    valid = inside[:, None] & known[None, :]

    first = ((image * height + top) * width + left) * strides.part + head * CONST.channels
    at = (row * width + column) * strides.part
    at_output = at[:, None] + channels[None, :]
    grad = tl.load(_select(part, grads) + first + at_output, mask=valid, other=0)
    grad = grad.to(CONST.accumulator)

    corner, row, column = _input_places(
        qkv, part, image, head, top, left, row, column, channels, stride, strides, CONST
    )
    taps: tl.constexpr = CONST.kernel_h * CONST.kernel_w
    parameters += part * (taps + 2) * CONST.channels
    x = _convolve(corner, row, column, valid, parameters, channels, known, sizes, strides, CONST)
    x, factor = _normalise(x, known, inside, CONST)

    partial += tl.program_id(0).to(tl.int64) * (taps + 2) * CONST.channels + channels
    tl.store(partial + taps * CONST.channels, tl.sum(grad * x, 0), mask=known)
    tl.store(partial + (taps + 1) * CONST.channels, tl.sum(grad, 0), mask=known)
    weight = tl.load(parameters + taps * CONST.channels + channels, mask=known, other=0)
    grad *= weight.to(CONST.accumulator)[None, :]
    along, along_x = tl.sum(grad, 1) / CONST.channels, tl.sum(grad * x, 1) / CONST.channels
    grad = (grad - along[:, None] - x * along_x[:, None]) * factor[:, None]
    target = _select(part, grads_convolved)
    tl.store(target + first + at_output, grad.to(target.dtype.element_ty), mask=valid)

    KERNEL_H: tl.constexpr = CONST.kernel_h
    KERNEL_W: tl.constexpr = CONST.kernel_w
    for a in tl.static_range(KERNEL_H):
        for b in tl.static_range(KERNEL_W):
            # Loaded again: the cache still holds them, registers could not.
            x = _load_tap(corner, row, column, valid, a, b, sizes, strides)
            total = tl.sum(x.to(CONST.accumulator) * grad, 0)
            tl.store(partial + (a * CONST.kernel_w + b) * CONST.channels, total, mask=known)


@triton.jit
def _copied(grad, image, head, top, left, row, column, channels, known, height, width, strides,
            CONST: tl.constexpr):  # fmt: skip
    """(P, D) gradients of places that are not pooled."""
    grad += ((image * height + top) * width + left) * strides.part + head * CONST.channels
    at = (row * width + column) * strides.part
    valid = ((row < height - top) & (column < width - left))[:, None] & known[None, :]
    return tl.load(grad + (at[:, None] + channels[None, :]), mask=valid, other=0)


@triton.jit
def _gathered(
    grad, weights, image, head, top, left, row, column, channels, known, height, width, strides,
    STRIDE: tl.constexpr, CONST: tl.constexpr,
):  # fmt: skip
    """(P, D): the gradients of the pooled places that read ``top + row`` and ``left + column``.

    Each is multiplied by the tap that it reads the place through. A place is read through every
    STRIDE-th tap of an axis; which is the first depends on the place.
    """
    total = _no_values(CONST)
    KERNEL_H: tl.constexpr = CONST.kernel_h
    KERNEL_W: tl.constexpr = CONST.kernel_w
    # Rows and columns of pooled places, from the first that reads the tile's first place.
    first_row, first_column = (top + CONST.padding_h) // STRIDE, (left + CONST.padding_w) // STRIDE
    row += top + CONST.padding_h - first_row * STRIDE
    column += left + CONST.padding_w - first_column * STRIDE
    grad += ((image * height + first_row) * width + first_column) * strides.part
    grad += head * CONST.channels
    height -= first_row
    width_left = width - first_column
    out_row, out_column = row // STRIDE, column // STRIDE
    at = (out_row * width + out_column) * strides.part
    grad = grad + (at[:, None] + channels[None, :])
    for i in tl.static_range(0, KERNEL_H, STRIDE):
        for j in tl.static_range(0, KERNEL_W, STRIDE):
            back_i, back_j = i // STRIDE, j // STRIDE
            a, b = row % STRIDE + i, column % STRIDE + j
            in_rows = (out_row - back_i >= -first_row) & (out_row - back_i < height)
            in_columns = out_column - back_j >= -first_column
            in_columns &= out_column - back_j < width_left
            read = (in_rows & (a < CONST.kernel_h)) & (in_columns & (b < CONST.kernel_w))
            valid = read[:, None] & known[None, :]
            value = tl.load(grad - (back_i * width + back_j) * strides.part, mask=valid, other=0)
            if STRIDE == 1:  # the same tap for all places
                at_tap = (i * CONST.kernel_w + j) * CONST.channels + channels
                tap = tl.load(weights + at_tap, mask=known, other=0)[None, :]
            else:
                at_tap = (a * CONST.kernel_w + b) * CONST.channels
                tap = tl.load(weights + at_tap[:, None] + channels[None, :], mask=valid, other=0)
            total += value.to(CONST.accumulator) * tap.to(CONST.accumulator)
    return total


@triton.jit
def _grad_of_part(
    grads, weights, image, head, top, left, row, column, channels, known, sizes, strides,
    STRIDES: tl.constexpr, PART: tl.constexpr, CONST: tl.constexpr,
):  # fmt: skip
    """(P, D): the gradients of a tile of a part's places before pooling."""
    heights = (sizes.height_q, sizes.height_k, sizes.height_v)
    widths = (sizes.width_q, sizes.width_k, sizes.width_v)
    height, width = heights[PART], widths[PART]
    STRIDE: tl.constexpr = STRIDES[PART]
    if STRIDE == 0:
        found = _copied(
            grads[PART], image, head, top, left, row, column, channels, known, height, width,
            strides, CONST,
        )  # fmt: skip
    else:
        found = _gathered(
            grads[PART], weights, image, head, top, left, row, column, channels, known,
            height, width, strides, STRIDE, CONST,
        )  # fmt: skip
    return found.to(CONST.accumulator)


@triton.jit(do_not_specialize=PoolSizes._fields)
def pool_gather_kernel(
    grad_qkv, parameters, grads_convolved, partial, start_k, start_v, heads, height, width,
    height_q, height_k, height_v, width_q, width_k, width_v, stride_q, stride_k, stride_v,
    strides,
    STRIDES: tl.constexpr, CONST: tl.constexpr,
):  # fmt: skip
    """The gradient of the projection; a program for each tile of places before pooling.

    ``partial``, if not None, is (tiles, 3·C): the sums over the places of each tile.
    ``STRIDES`` are those of q, k and v, 0 where a part is not pooled.
    """
    sizes = PoolSizes(
        start_k, start_v, heads, height, width, height_q, height_k, height_v,
        width_q, width_k, width_v, stride_q, stride_k, stride_v,
    )  # fmt: skip
    part, index = _part_of(tl.program_id(0), sizes)
    head, image, top, left = _tile_start(index, sizes.heads, sizes.height, sizes.width, CONST)
    row, column = _tile_places(CONST)
    channels = tl.arange(0, CONST.d)
    known = channels < CONST.channels
    taps: tl.constexpr = CONST.kernel_h * CONST.kernel_w
    parameters += part * (taps + 2) * CONST.channels
    # One branch for each part: the number of places to gather from depends on its stride.
    if part == 0:
        grad = _grad_of_part(
            grads_convolved, parameters, image, head, top, left, row, column, channels, known,
            sizes, strides, STRIDES, 0, CONST,
        )  # fmt: skip
    elif part == 1:
        grad = _grad_of_part(
            grads_convolved, parameters, image, head, top, left, row, column, channels, known,
            sizes, strides, STRIDES, 1, CONST,
        )  # fmt: skip
    else:
        grad = _grad_of_part(
            grads_convolved, parameters, image, head, top, left, row, column, channels, known,
            sizes, strides, STRIDES, 2, CONST,
        )  # fmt: skip

    grad_qkv += image * strides.b + top.to(tl.int64) * strides.y + left.to(tl.int64) * strides.x
    grad_qkv += part * strides.part + head * CONST.channels
    at = row * strides.y + column * strides.x
    inside = (row < sizes.height - top) & (column < sizes.width - left)
    valid = inside[:, None] & known[None, :]
    if partial is not None:
        first = (index // sizes.heads).to(tl.int64) * 3 * strides.part
        first += part * strides.part + head * CONST.channels
        total = tl.sum(tl.where(valid, grad, 0.0), 0)
        tl.store(partial + first + channels, total, mask=known)
    tl.store(
        grad_qkv + (at[:, None] + channels[None, :]),
        grad.to(grad_qkv.dtype.element_ty),
        mask=valid,
    )
