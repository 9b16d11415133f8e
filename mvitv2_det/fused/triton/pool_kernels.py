"""Device functions of :mod:`.pool`: each program computes one head of a strip of a map.

A strip is ``CONST.columns`` columns wide. A program rolls down its rows: it loads a row once for
each column of taps, and uses it for all rows of taps. Three loads an output are left of the nine
of a 3×3 convolution with stride 1; strips begin with the rows above them.

Programs are numbered q's first, then k's, then v's, the heads of a strip next to each other, as
they are in memory. Offsets of images and strips are 64 bits wide, those within a strip 32.

``CONST`` is a :class:`PoolConstants`, ``sizes`` a :class:`PoolSizes` and ``strides`` an
:class:`InputStrides`. A part is q, k or v: 0, 1 or 2. Fields of constants that Triton 3.6 does
not take as they are (shapes, static ranges) are constants of a function first.

Axes: d channels of a head, padded to D, X columns of a strip, T = kh·kw taps of the convolution.
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
    rows: int  # of a strip
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
    columns: int  # of a strip
    accumulator: tl.dtype


class Strip(NamedTuple):
    """A program's strip of pooled places, and the places of the map that it reads.

    Attributes:
        part, stride: of the pooling.
        rows: of the strip, within the pooled map.
        width: of the pooled map.
        inside: whether there are such columns (X).
        first: offset of the first place in the pooled map.
        start: pointers (X, D) to the first tap of each place of the first row.
        top, column: row of the map of the first tap, and columns (X).
    """

    part: tl.tensor
    stride: tl.tensor
    rows: tl.tensor
    width: tl.tensor
    inside: tl.tensor
    first: tl.tensor
    start: tl.tensor
    top: tl.tensor
    column: tl.tensor


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
def _strip_start(index, height, width, sizes, CONST: tl.constexpr):
    """Head, image, and first row and column of a strip of a height × width map."""
    across = tl.cdiv(width, CONST.columns)
    down = tl.cdiv(height, sizes.rows)
    strip = index // sizes.heads
    row = strip // across % down * sizes.rows
    image = (strip // (across * down)).to(tl.int64)
    return index % sizes.heads, image, row, strip % across * CONST.columns


@triton.jit
def _strip_columns(CONST: tl.constexpr):
    """Columns (X) and channels (D) of a strip, and which channels there are.

    A thread gets four channels, not the eight that a load of 16 bytes could have: the taps of
    eight would leave registers for half as many programs.
    """
    channels = tl.arange(0, CONST.d)
    known = channels < CONST.channels
    return tl.arange(0, CONST.columns), tl.max_contiguous(channels, 4), known


@triton.jit
def _zeros(CONST: tl.constexpr):
    """(X, D)."""
    X: tl.constexpr = CONST.columns
    D: tl.constexpr = CONST.d
    return tl.zeros((X, D), CONST.accumulator)


@triton.jit
def _load_parameter(parameters, i, channels, known, CONST: tl.constexpr):
    """The i-th tap, or the norm's weight or bias after the taps: (1, D)."""
    value = tl.load(parameters + i * CONST.channels + channels, mask=known, other=0)
    return value.to(CONST.accumulator)[None, :]


@triton.jit
def _pooled_strip(qkv, column, channels, sizes, strides, CONST: tl.constexpr):
    """The program's :class:`Strip`, of ``column`` (X) and ``channels`` (D)."""
    part, index = _part_of(tl.program_id(0), sizes)
    height = _select(part, (sizes.height_q, sizes.height_k, sizes.height_v))
    width = _select(part, (sizes.width_q, sizes.width_k, sizes.width_v))
    stride = _select(part, (sizes.stride_q, sizes.stride_k, sizes.stride_v))
    head, image, top, left = _strip_start(index, height, width, sizes, CONST)
    first = ((image * height + top) * width + left) * strides.part + head * CONST.channels
    in_top, in_left = top * stride - CONST.padding_h, left * stride - CONST.padding_w
    start = qkv + image * strides.b + in_top.to(tl.int64) * strides.y
    start += in_left.to(tl.int64) * strides.x + part * strides.part + head * CONST.channels
    start = start + ((column * stride * strides.x)[:, None] + channels[None, :])
    rows = tl.minimum(sizes.rows, height - top)
    inside = column < width - left
    in_column = column * stride + in_left
    return Strip(part, stride, rows, width, inside, first, start, in_top, in_column)


@triton.jit
def _load_row(strip, at, needed, known, sizes, strides, CONST: tl.constexpr):
    """The values (X, D) that the kw taps of a row read, ``at`` rows below the first tap.

    Zeros where there are no places or the row is not ``needed``.
    """
    values = ()
    exists = (strip.top + at >= 0) & (strip.top + at < sizes.height) & needed
    KERNEL_W: tl.constexpr = CONST.kernel_w
    for b in tl.static_range(KERNEL_W):
        inside = (strip.column + b >= 0) & (strip.column + b < sizes.width) & exists
        offset = at * strides.y + b * strides.x
        value = tl.load(strip.start + offset, mask=inside[:, None] & known[None, :], other=0)
        values += (value,)
    return values


@triton.jit
def _next_tap(row, tap, stride, CONST: tl.constexpr):
    """The pooled row, and its row of taps, that read the next row of the map that any reads."""
    ends = tap == CONST.kernel_h - 1
    first = CONST.kernel_h - tl.minimum(stride, CONST.kernel_h)
    return row + ends.to(tl.int32), tl.where(ends, first, tap + 1)


@triton.jit
def _count_rows(strip, CONST: tl.constexpr):
    """How many rows of the map a strip reads."""
    return (strip.rows - 1) * tl.minimum(strip.stride, CONST.kernel_h) + CONST.kernel_h


@triton.jit
def _normalise(x, known, inside, CONST: tl.constexpr):
    """(X, D) values of mean 0 and variance 1 at each place, and the (X) factors to variance 1."""
    mean = tl.sum(x, 1) / CONST.channels
    x = tl.where(known[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(x * x, 1) / CONST.channels
    # Outside of the map the variance is 0, and NaN if there is no eps.
    factor = tl.rsqrt(tl.where(inside, variance + CONST.eps, 1.0))
    return x * factor[:, None], factor


@triton.jit(do_not_specialize=PoolSizes._fields)
def pool_forward_kernel(
    qkv, parameters, outputs, start_k, start_v, heads, rows, height, width,
    height_q, height_k, height_v, width_q, width_k, width_v, stride_q, stride_k, stride_v,
    strides, CONST: tl.constexpr,
):  # fmt: skip
    """Pooled and normalised q, k and v; a program for each strip of pooled places.

    A row of the map is added to the kh convolutions that may read it, through a row of taps each:
    ``sums`` are those of all but the last. With a stride some belong to no place, and are not
    finished. The next row is under way meanwhile.
    """
    sizes = PoolSizes(
        start_k, start_v, heads, rows, height, width, height_q, height_k, height_v,
        width_q, width_k, width_v, stride_q, stride_k, stride_v,
    )  # fmt: skip
    column, channels, known = _strip_columns(CONST)
    strip = _pooled_strip(qkv, column, channels, sizes, strides, CONST)
    valid = strip.inside[:, None] & known[None, :]
    out = _select(strip.part, outputs) + strip.first
    out = out + ((column * strides.part)[:, None] + channels[None, :])
    KERNEL_H: tl.constexpr = CONST.kernel_h
    KERNEL_W: tl.constexpr = CONST.kernel_w
    TAPS: tl.constexpr = CONST.kernel_h * CONST.kernel_w
    parameters += strip.part * (TAPS + 2) * CONST.channels
    taps = ()
    for i in tl.static_range(TAPS):
        taps += (_load_parameter(parameters, i, channels, known, CONST),)

    sums = (_zeros(CONST),) * (KERNEL_H - 1)
    row, tap = 0, 0
    values = _load_row(strip, 0, True, known, sizes, strides, CONST)
    for _ in range(_count_rows(strip, CONST)):
        next_row, next_tap = _next_tap(row, tap, strip.stride, CONST)
        following = _load_row(
            strip, next_row * strip.stride + next_tap, next_row < strip.rows, known, sizes, strides,
            CONST,
        )  # fmt: skip
        begun = (_zeros(CONST),)
        begun += sums
        for b in tl.static_range(KERNEL_W):
            value = values[b].to(CONST.accumulator)
            added = ()
            for a in tl.static_range(KERNEL_H):
                added += (begun[a] + value * taps[a * KERNEL_W + b],)
            begun = added
        if tap == KERNEL_H - 1:
            x = _normalise(begun[KERNEL_H - 1], known, strip.inside, CONST)[0]
            x *= _load_parameter(parameters, TAPS, channels, known, CONST)
            x += _load_parameter(parameters, TAPS + 1, channels, known, CONST)
            at_output = row * strip.width * strides.part
            tl.store(out + at_output, x.to(out.dtype.element_ty), mask=valid)
        sums, values = begun[: KERNEL_H - 1], following
        row, tap = next_row, next_tap


@triton.jit(do_not_specialize=PoolSizes._fields)
def pool_backward_kernel(
    qkv, parameters, grads, grads_convolved, partial, start_k, start_v, heads, rows, height, width,
    height_q, height_k, height_v, width_q, width_k, width_v, stride_q, stride_k, stride_v,
    strides, CONST: tl.constexpr,
):  # fmt: skip
    """Gradients of the convolutions' outputs, and each program's part of the parameters'.

    ``partial`` is (programs, T + 2, d), in the order of ``parameters``. The taps' gradients take
    the rows again that the convolution read, so that those are kept instead of sums, and the taps
    are loaded for each row: the cache holds them, registers do not.
    """
    sizes = PoolSizes(
        start_k, start_v, heads, rows, height, width, height_q, height_k, height_v,
        width_q, width_k, width_v, stride_q, stride_k, stride_v,
    )  # fmt: skip
    column, channels, known = _strip_columns(CONST)
    strip = _pooled_strip(qkv, column, channels, sizes, strides, CONST)
    valid = strip.inside[:, None] & known[None, :]
    outer = _select(strip.part, grads) + strip.first
    target = _select(strip.part, grads_convolved) + strip.first
    at_column = (column * strides.part)[:, None] + channels[None, :]
    KERNEL_H: tl.constexpr = CONST.kernel_h
    KERNEL_W: tl.constexpr = CONST.kernel_w
    TAPS: tl.constexpr = CONST.kernel_h * CONST.kernel_w
    parameters += strip.part * (TAPS + 2) * CONST.channels

    totals = (_zeros(CONST),) * (TAPS + 2)
    kept = (_zeros(CONST),) * (TAPS - KERNEL_W)
    row, tap = 0, 0
    for _ in range(_count_rows(strip, CONST)):
        at = row * strip.stride + tap
        loaded = _load_row(strip, at, True, known, sizes, strides, CONST)
        for b in tl.static_range(KERNEL_W):
            kept += (loaded[b].to(CONST.accumulator),)
        if tap == KERNEL_H - 1:
            at_output = row * strip.width * strides.part + at_column
            grad = tl.load(outer + at_output, mask=valid, other=0).to(CONST.accumulator)
            x = _zeros(CONST)
            for i in tl.static_range(TAPS):
                x += kept[i] * _load_parameter(parameters, i, channels, known, CONST)
            x, factor = _normalise(x, known, strip.inside, CONST)
            of_norm = totals[TAPS] + grad * x, totals[TAPS + 1] + grad
            grad *= _load_parameter(parameters, TAPS, channels, known, CONST)
            along, along_x = tl.sum(grad, 1) / CONST.channels, tl.sum(grad * x, 1) / CONST.channels
            grad = (grad - along[:, None] - x * along_x[:, None]) * factor[:, None]
            tl.store(target + at_output, grad.to(target.dtype.element_ty), mask=valid)
            of_taps = ()
            for i in tl.static_range(TAPS):
                of_taps += (totals[i] + kept[i] * grad,)
            totals = of_taps + of_norm
        kept = kept[KERNEL_W:]
        row, tap = _next_tap(row, tap, strip.stride, CONST)

    partial += tl.program_id(0).to(tl.int64) * (TAPS + 2) * CONST.channels + channels
    for i in tl.static_range(TAPS + 2):
        tl.store(partial + i * CONST.channels, tl.sum(totals[i], 0), mask=known)


@triton.jit
def _load_pooled(start, row, column, needed, known, height, width, distance, READS: tl.constexpr):
    """The gradients (X, D) of a pooled row at ``column`` (X) and at places before it: READS.

    Zeros where there are no places. ``start`` points to the row's gradients at ``column``.
    """
    values = ()
    exists = (row >= 0) & (row < height) & needed
    for j in tl.static_range(READS):
        inside = (column - j >= 0) & (column - j < width) & exists
        value = tl.load(start - j * distance, mask=inside[:, None] & known[None, :], other=0)
        values += (value,)
    return values


@triton.jit
def _load_taps_of(parameters, tap, channels, known, STRIDE: tl.constexpr, CONST: tl.constexpr):
    """The taps (X, D) that read each place: of each row every STRIDE-th, from ``tap`` (X) on."""
    taps = ()
    KERNEL_H: tl.constexpr = CONST.kernel_h
    KERNEL_W: tl.constexpr = CONST.kernel_w
    for a in tl.static_range(KERNEL_H):
        for b in tl.static_range(0, KERNEL_W, STRIDE):
            at = ((a * KERNEL_W + tap + b) * CONST.channels)[:, None] + channels[None, :]
            mask = (tap + b < KERNEL_W)[:, None] & known[None, :]
            value = tl.load(parameters + at, mask=mask, other=0)
            taps += (value.to(CONST.accumulator),)
    return taps


@triton.jit
def _gather(
    grad_qkv, grads, parameters, partial, index, sizes, strides,
    PART: tl.constexpr, STRIDES: tl.constexpr, CONST: tl.constexpr,
):  # fmt: skip
    """The gradient of a strip of a part's places before pooling, and its sum.

    Pooled row r is read by kh rows, from r · stride - padding on, through a row of taps each:
    ``sums`` are of these. The first ``stride`` of them are complete then, and no other row is.
    A place is read through every stride-th tap of a row of taps; which is the first depends on its
    column. A part that is not pooled has one tap, which is 1.

    Strips begin ``padding`` rows early, so that they end where pooled rows do.
    """
    POOLED: tl.constexpr = STRIDES[PART] > 0
    STRIDE: tl.constexpr = STRIDES[PART] if POOLED else 1
    KERNEL_H: tl.constexpr = CONST.kernel_h if POOLED else 1
    KERNEL_W: tl.constexpr = CONST.kernel_w if POOLED else 1
    READS: tl.constexpr = (KERNEL_W + STRIDE - 1) // STRIDE
    UNFINISHED: tl.constexpr = KERNEL_H - STRIDE if KERNEL_H > STRIDE else 0
    heights = (sizes.height_q, sizes.height_k, sizes.height_v)
    widths = (sizes.width_q, sizes.width_k, sizes.width_v)
    height, width = heights[PART], widths[PART]
    head, image, top, left = _strip_start(
        index, sizes.height + CONST.padding_h, sizes.width, sizes, CONST
    )
    column, channels, known = _strip_columns(CONST)
    valid = (column < sizes.width - left)[:, None] & known[None, :]
    shifted = left + column + (CONST.padding_w if POOLED else 0)
    first = top // STRIDE - (0 if POOLED else CONST.padding_h)
    if POOLED:
        taps = _load_taps_of(parameters, shifted % STRIDE, channels, known, STRIDE, CONST)
    else:
        taps = (_zeros(CONST) + 1,)
    out_column = shifted // STRIDE
    grad = grads[PART] + (image * height + first) * width * strides.part + head * CONST.channels
    grad = grad + ((out_column * strides.part)[:, None] + channels[None, :])
    top -= CONST.padding_h
    out = grad_qkv + image * strides.b + top.to(tl.int64) * strides.y
    out += left.to(tl.int64) * strides.x + PART * strides.part + head * CONST.channels
    out = out + ((column * strides.x)[:, None] + channels[None, :])

    count = tl.cdiv(tl.minimum(sizes.rows, sizes.height - top), STRIDE)
    total = _zeros(CONST)
    sums = (_zeros(CONST),) * UNFINISHED
    BEFORE: tl.constexpr = (KERNEL_H - 1) // STRIDE
    values = _load_pooled(
        grad - BEFORE * width * strides.part, first - BEFORE, out_column, True, known,
        height, width, strides.part, READS,
    )  # fmt: skip
    for i in range(-BEFORE, count):
        following = _load_pooled(
            grad + (i + 1) * width * strides.part, first + i + 1, out_column, i + 1 < count, known,
            height, width, strides.part, READS,
        )  # fmt: skip
        unfinished = ()
        for a in tl.static_range(UNFINISHED + STRIDE):
            found = sums[a] if a < UNFINISHED else _zeros(CONST)
            if a < KERNEL_H:
                for j in tl.static_range(READS):
                    found += values[j].to(CONST.accumulator) * taps[a * READS + j]
            if a < STRIDE:
                at = i * STRIDE + a
                mask = valid & ((i >= 0) & (top + at >= 0) & (top + at < sizes.height))
                total += tl.where(mask, found, 0.0)
                tl.store(out + at * strides.y, found.to(grad_qkv.dtype.element_ty), mask=mask)
            else:
                unfinished += (found,)
        sums, values = unfinished, following
    if partial is not None:
        partial += (index // sizes.heads).to(tl.int64) * 3 * strides.part
        partial += PART * strides.part + head * CONST.channels + channels
        tl.store(partial, tl.sum(total, 0), mask=known)


@triton.jit(do_not_specialize=PoolSizes._fields)
def pool_gather_kernel(
    grad_qkv, parameters, grads_convolved, partial, start_k, start_v, heads, rows, height, width,
    height_q, height_k, height_v, width_q, width_k, width_v, stride_q, stride_k, stride_v,
    strides, STRIDES: tl.constexpr, CONST: tl.constexpr,
):  # fmt: skip
    """The gradient of the projection; a program for each strip of places before pooling.

    ``partial``, if not None, is (strips, 3·C): the sums over the places of each strip.
    ``STRIDES`` are those of q, k and v, 0 where a part is not pooled; ``rows`` is a multiple of
    each.
    """
    sizes = PoolSizes(
        start_k, start_v, heads, rows, height, width, height_q, height_k, height_v,
        width_q, width_k, width_v, stride_q, stride_k, stride_v,
    )  # fmt: skip
    part, index = _part_of(tl.program_id(0), sizes)
    parameters += part * (CONST.kernel_h * CONST.kernel_w + 2) * CONST.channels
    # One branch for each part: which places to gather from depends on its stride.
    if part == 0:
        _gather(
            grad_qkv, grads_convolved, parameters, partial, index, sizes, strides, 0, STRIDES, CONST
        )  # fmt: skip
    elif part == 1:
        _gather(
            grad_qkv, grads_convolved, parameters, partial, index, sizes, strides, 1, STRIDES, CONST
        )  # fmt: skip
    else:
        _gather(
            grad_qkv, grads_convolved, parameters, partial, index, sizes, strides, 2, STRIDES, CONST
        )  # fmt: skip
