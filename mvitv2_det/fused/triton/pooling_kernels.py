"""What each program of :mod:`mvitv2_det.fused.triton.pooling` computes: one head at one tile of places.

All kernels take the same arguments for shapes. Programs are numbered q's first, then k's, then
v's, the heads of a tile next to each other, as they are in memory. Offsets of images and tiles are
64 bits wide, those within a tile 32.

Axes: as in :mod:`mvitv2_det.fused.triton.pooling`.
"""

import triton
import triton.language as tl

# Images differ in size from step to step: one compiled kernel is to serve them all.
_SIZES = ["start_k", "start_v", "heads", "height", "width"]
_SIZES += [f"{name}_{part}" for name in ("height", "width") for part in "qkv"]
_STRIDES = [f"stride_{part}" for part in "qkv"]


@triton.jit
def _of_part(part, q, k, v):
    return tl.where(part == 0, q, tl.where(part == 1, k, v))


@triton.jit
def _part(program, start_k, start_v):
    """0, 1 or 2, and the program's number within the part."""
    part = (program >= start_k).to(tl.int32) + (program >= start_v).to(tl.int32)
    return part, program - _of_part(part, 0, start_k, start_v)


@triton.jit
def _place(index, heads, height, width, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Head, image, and first row and column of a tile of a height × width map."""
    across = tl.cdiv(width, TILE_W)
    down = tl.cdiv(height, TILE_H)
    tile = index // heads
    row = tile // across % down * TILE_H
    image = (tile // (across * down)).to(tl.int64)
    return index % heads, image, row, tile % across * TILE_W


@triton.jit
def _tile(TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Rows and columns (P) of a tile's places within it."""
    places = tl.arange(0, TILE_H * TILE_W)
    return places // TILE_W, places % TILE_W


@triton.jit
def _tap(corner, row, column, valid, a, b, height, width, across_h, across_w):
    """(P, D) values that tap (a, b) meets from windows at ``row`` and ``column`` (P)."""
    in_rows = (row + a >= 0) & (row + a < height)
    in_columns = (column + b >= 0) & (column + b < width)
    mask = (in_rows & in_columns)[:, None] & valid
    return tl.load(corner + (a * across_h + b * across_w), mask=mask, other=0)


@triton.jit
def _convolve(
    corner, row, column, valid, weights, channels, known, height, width, across_h, across_w,
    HEAD_DIM: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    D: tl.constexpr, P: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """(P, D) outputs of the convolution, zero where not ``valid``."""
    total = tl.zeros((P, D), ACCUMULATOR)
    for a in tl.static_range(KERNEL_H):
        for b in tl.static_range(KERNEL_W):
            tap = tl.load(weights + (a * KERNEL_W + b) * HEAD_DIM + channels, mask=known, other=0)
            x = _tap(corner, row, column, valid, a, b, height, width, across_h, across_w)
            total += x.to(ACCUMULATOR) * tap.to(ACCUMULATOR)[None, :]
    return total


@triton.jit
def _normalise(x, known, inside, HEAD_DIM: tl.constexpr, EPS: tl.constexpr):
    """(P, D) values of mean 0 and variance 1 at each place, and the (P) factors to variance 1."""
    mean = tl.sum(x, 1) / HEAD_DIM
    x = tl.where(known[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(x * x, 1) / HEAD_DIM
    # Outside of the map the variance is 0, and NaN if there is no eps.
    factor = tl.rsqrt(tl.where(inside, variance + EPS, 1.0))
    return x * factor[:, None], factor


@triton.jit(do_not_specialize=_SIZES + _STRIDES)
def forward_kernel(
    qkv, parameters, out_q, out_k, out_v,
    start_k, start_v, heads, height, width, across_b, across_h, across_w, of_part,
    height_q, width_q, stride_q, height_k, width_k, stride_k, height_v, width_v, stride_v,
    HEAD_DIM: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, EPS: tl.constexpr,
    D: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Pooled and normalised q, k and v; a program for each tile of pooled places."""
    part, index = _part(tl.program_id(0), start_k, start_v)
    out = _of_part(part, out_q, out_k, out_v)
    out_height = _of_part(part, height_q, height_k, height_v)
    out_width = _of_part(part, width_q, width_k, width_v)
    stride = _of_part(part, stride_q, stride_k, stride_v)
    head, image, top, left = _place(index, heads, out_height, out_width, TILE_H, TILE_W)
    row, column = _tile(TILE_H, TILE_W)
    channels = tl.arange(0, D)
    known = channels < HEAD_DIM
    inside = (row < out_height - top) & (column < out_width - left)
    valid = inside[:, None] & known[None, :]

    top_in, left_in = top * stride - PADDING_H, left * stride - PADDING_W
    corner = qkv + image * across_b + top_in.to(tl.int64) * across_h
    corner += left_in.to(tl.int64) * across_w + part * of_part + head * HEAD_DIM
    at = row * stride * across_h + column * stride * across_w
    taps: tl.constexpr = KERNEL_H * KERNEL_W
    parameters += part * (taps + 2) * HEAD_DIM
    x = _convolve(
        corner + (at[:, None] + channels[None, :]), row * stride + top_in,
        column * stride + left_in, valid, parameters, channels, known, height, width,
        across_h, across_w, HEAD_DIM, KERNEL_H, KERNEL_W, D, TILE_H * TILE_W, ACCUMULATOR,
    )  # fmt: skip
    x, _ = _normalise(x, known, inside, HEAD_DIM, EPS)

    weight = tl.load(parameters + taps * HEAD_DIM + channels, mask=known, other=0)
    bias = tl.load(parameters + (taps + 1) * HEAD_DIM + channels, mask=known, other=0)
    x = x * weight.to(ACCUMULATOR)[None, :] + bias.to(ACCUMULATOR)[None, :]
    out += ((image * out_height + top) * out_width + left) * of_part + head * HEAD_DIM
    at = (row * out_width + column) * of_part
    tl.store(out + (at[:, None] + channels[None, :]), x.to(out.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=_SIZES + _STRIDES)
def backward_kernel(
    qkv, parameters, grad_q, grad_k, grad_v, convolved_q, convolved_k, convolved_v, partial,
    start_k, start_v, heads, height, width, across_b, across_h, across_w, of_part,
    height_q, width_q, stride_q, height_k, width_k, stride_k, height_v, width_v, stride_v,
    HEAD_DIM: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, EPS: tl.constexpr,
    D: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Gradients of what the convolutions put out, and each program's part of the parameters'.

    ``partial`` is (programs, T + 2, d), in the order of ``parameters``.
    """
    part, index = _part(tl.program_id(0), start_k, start_v)
    out_height = _of_part(part, height_q, height_k, height_v)
    out_width = _of_part(part, width_q, width_k, width_v)
    stride = _of_part(part, stride_q, stride_k, stride_v)
    head, image, top, left = _place(index, heads, out_height, out_width, TILE_H, TILE_W)
    row, column = _tile(TILE_H, TILE_W)
    channels = tl.arange(0, D)
    known = channels < HEAD_DIM
    inside = (row < out_height - top) & (column < out_width - left)
    valid = inside[:, None] & known[None, :]

    first = ((image * out_height + top) * out_width + left) * of_part + head * HEAD_DIM
    at = (row * out_width + column) * of_part
    at_output = at[:, None] + channels[None, :]
    grad = tl.load(
        _of_part(part, grad_q, grad_k, grad_v) + first + at_output, mask=valid, other=0
    ).to(ACCUMULATOR)

    top_in, left_in = top * stride - PADDING_H, left * stride - PADDING_W
    corner = qkv + image * across_b + top_in.to(tl.int64) * across_h
    corner += left_in.to(tl.int64) * across_w + part * of_part + head * HEAD_DIM
    at = row * stride * across_h + column * stride * across_w
    corner = corner + (at[:, None] + channels[None, :])
    row, column = row * stride + top_in, column * stride + left_in
    taps: tl.constexpr = KERNEL_H * KERNEL_W
    parameters += part * (taps + 2) * HEAD_DIM
    x = _convolve(
        corner, row, column, valid, parameters, channels, known, height, width,
        across_h, across_w, HEAD_DIM, KERNEL_H, KERNEL_W, D, TILE_H * TILE_W, ACCUMULATOR,
    )  # fmt: skip
    x, factor = _normalise(x, known, inside, HEAD_DIM, EPS)

    partial += tl.program_id(0).to(tl.int64) * (taps + 2) * HEAD_DIM + channels
    tl.store(partial + taps * HEAD_DIM, tl.sum(grad * x, 0), mask=known)
    tl.store(partial + (taps + 1) * HEAD_DIM, tl.sum(grad, 0), mask=known)
    weight = tl.load(parameters + taps * HEAD_DIM + channels, mask=known, other=0)
    grad *= weight.to(ACCUMULATOR)[None, :]
    along, along_x = tl.sum(grad, 1) / HEAD_DIM, tl.sum(grad * x, 1) / HEAD_DIM
    grad = (grad - along[:, None] - x * along_x[:, None]) * factor[:, None]
    convolved = _of_part(part, convolved_q, convolved_k, convolved_v)
    tl.store(convolved + first + at_output, grad.to(convolved.dtype.element_ty), mask=valid)

    for a in tl.static_range(KERNEL_H):
        for b in tl.static_range(KERNEL_W):
            # Not kept since the convolution: the cache has them, registers could not.
            x = _tap(corner, row, column, valid, a, b, height, width, across_h, across_w)
            total = tl.sum(x.to(ACCUMULATOR) * grad, 0)
            tl.store(partial + (a * KERNEL_W + b) * HEAD_DIM, total, mask=known)


@triton.jit
def _gathered(
    grad, weights, image, head, top, left, row, column, channels, known, of_part, height, width,
    STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    D: tl.constexpr, P: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """(P, D): the gradients of the pooled places that read ``top + row`` and ``left + column``.

    Each is multiplied by the tap that it reads the place through. A place is read through every
    STRIDE-th tap of an axis, from its own phase on.
    """
    total = tl.zeros((P, D), ACCUMULATOR)
    # Rows and columns of pooled places, from the first that reads the tile's first place.
    if STRIDE == 0:  # not pooled
        first_row, first_column = top, left
    else:
        first_row, first_column = (top + PADDING_H) // STRIDE, (left + PADDING_W) // STRIDE
        row += top + PADDING_H - first_row * STRIDE
        column += left + PADDING_W - first_column * STRIDE
    grad += ((image * height + first_row) * width + first_column) * of_part + head * HEAD_DIM
    height -= first_row
    width_left = width - first_column
    if STRIDE == 0:
        at = (row * width + column) * of_part
        valid = ((row < height) & (column < width_left))[:, None] & known[None, :]
        total = tl.load(grad + (at[:, None] + channels[None, :]), mask=valid, other=0)
    else:
        out_row, out_column = row // STRIDE, column // STRIDE
        at = (out_row * width + out_column) * of_part
        grad = grad + (at[:, None] + channels[None, :])
        for i in tl.static_range(0, KERNEL_H, STRIDE):
            for j in tl.static_range(0, KERNEL_W, STRIDE):
                back_i, back_j = i // STRIDE, j // STRIDE
                a, b = row % STRIDE + i, column % STRIDE + j
                in_rows = (out_row - back_i >= -first_row) & (out_row - back_i < height)
                in_columns = (out_column - back_j >= -first_column) & (
                    out_column - back_j < width_left
                )
                read = (in_rows & (a < KERNEL_H)) & (in_columns & (b < KERNEL_W))
                valid = read[:, None] & known[None, :]
                value = tl.load(grad - (back_i * width + back_j) * of_part, mask=valid, other=0)
                if STRIDE == 1:  # the same tap for all places
                    at_tap = (i * KERNEL_W + j) * HEAD_DIM + channels
                    tap = tl.load(weights + at_tap, mask=known, other=0)[None, :]
                else:
                    at_tap = ((a * KERNEL_W + b) * HEAD_DIM)[:, None] + channels[None, :]
                    tap = tl.load(weights + at_tap, mask=valid, other=0)
                total += value.to(ACCUMULATOR) * tap.to(ACCUMULATOR)
    return total.to(ACCUMULATOR)


@triton.jit(do_not_specialize=_SIZES)
def gather_kernel(
    grad_qkv, parameters, convolved_q, convolved_k, convolved_v,
    start_k, start_v, heads, height, width, across_b, across_h, across_w, of_part,
    height_q, width_q, stride_q: tl.constexpr, height_k, width_k, stride_k: tl.constexpr,
    height_v, width_v, stride_v: tl.constexpr,
    HEAD_DIM: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, EPS: tl.constexpr,
    D: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """The gradient of the projection; a program for each tile of places before pooling."""
    part, index = _part(tl.program_id(0), start_k, start_v)
    head, image, top, left = _place(index, heads, height, width, TILE_H, TILE_W)
    row, column = _tile(TILE_H, TILE_W)
    channels = tl.arange(0, D)
    known = channels < HEAD_DIM
    taps: tl.constexpr = KERNEL_H * KERNEL_W
    parameters += part * (taps + 2) * HEAD_DIM
    # One branch for each part: the number of places to gather from depends on its stride.
    if part == 0:
        grad = _gathered(
            convolved_q, parameters, image, head, top, left, row, column, channels, known, of_part,
            height_q, width_q, stride_q, HEAD_DIM, KERNEL_H, KERNEL_W,
            PADDING_H, PADDING_W, D, TILE_H * TILE_W, ACCUMULATOR,
        )  # fmt: skip
    elif part == 1:
        grad = _gathered(
            convolved_k, parameters, image, head, top, left, row, column, channels, known, of_part,
            height_k, width_k, stride_k, HEAD_DIM, KERNEL_H, KERNEL_W,
            PADDING_H, PADDING_W, D, TILE_H * TILE_W, ACCUMULATOR,
        )  # fmt: skip
    else:
        grad = _gathered(
            convolved_v, parameters, image, head, top, left, row, column, channels, known, of_part,
            height_v, width_v, stride_v, HEAD_DIM, KERNEL_H, KERNEL_W,
            PADDING_H, PADDING_W, D, TILE_H * TILE_W, ACCUMULATOR,
        )  # fmt: skip

    grad_qkv += image * across_b + top.to(tl.int64) * across_h + left.to(tl.int64) * across_w
    grad_qkv += part * of_part + head * HEAD_DIM
    at = row * across_h + column * across_w
    valid = ((row < height - top) & (column < width - left))[:, None] & known[None, :]
    tl.store(
        grad_qkv + (at[:, None] + channels[None, :]),
        grad.to(grad_qkv.dtype.element_ty),
        mask=valid,
    )
