"""Pooling of q, k and v in one launch over their common projection: P_Q, P_K and P_V of Eq. 1.

A depthwise convolution whose weights the heads share, then LayerNorm over each head's channels:
a :class:`~mvitv2_det.fused.head_pool.HeadPool` for each of the parts q, k and v.

Axes: B images, H × W tokens, C = h·d channels of h heads, H' × W' tokens of a pooled part,
D the power of two that d is padded to, T = kh·kw taps of the convolution.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import lcm
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..products import column_sums
from .launch import PROCESSORS, Blocks, accumulator, accumulator_dtype, ceil_div, power_of_2
from .pool_kernels import (
    InputStrides,
    PoolConstants,
    PoolSizes,
    pool_backward_kernel,
    pool_forward_kernel,
    pool_gather_kernel,
)
from .sums import row_sums
from .tile_table import Case, measured_or

if TYPE_CHECKING:
    from ..head_pool import HeadPool

# Strips are halved until there are programs for all places that an H100 has for them, but not
# below this: one of 8 rows loads 10.
ENOUGH_PROGRAMS, LEAST_ROWS = 3 * PROCESSORS, 8


class _Launch(NamedTuple):
    """Number of programs of a kernel, and the arguments that all pooling kernels take."""

    programs: int
    sizes: PoolSizes
    strides: InputStrides
    constants: PoolConstants
    blocks: Blocks


@measured_or("pool_forward")
def forward_tile(case: Case) -> Blocks:
    """Strip of a program for heads of so many channels: its rows and columns, as queries and keys.

    A thread computes four channels of a column. Heads of 96 channels then take 78 registers in 16
    bits, 100 in float32: two or three programs of eight warps wait for memory in turn on each of
    an H100's multiprocessors. A strip of 32 rows loads 34 where the stride is 1.
    """
    return _tile(case)


@measured_or("pool_backward")
def backward_tile(case: Case) -> Blocks:
    """Strip of the backward kernel: the forward kernel's; two programs are on a multiprocessor."""
    return _tile(case)


@measured_or("pool_gather")
def gather_tile(case: Case) -> Blocks:
    """Strip of the kernel that gathers gradients: the forward kernel's."""
    return _tile(case)


def _tile(case: Case) -> Blocks:
    return Blocks(32, 8, min(max(power_of_2(case.channels) // 16, 1), 8), stages=1)


def pool_forward(
    qkv: Tensor, pools: Sequence["HeadPool"], packed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Pools and normalises q, k and v.

    Bytes, with n = B·H·W·C·itemsize of a part, r = H'·W' / (H·W) and f = min(T·r, 1) of the places
    read: (f + r)·n for each pooled part. Plain PyTorch moves (2 + f + 3·r)·n: it copies the part
    out of the projection, writes the convolution's output, reads it, and writes it normalised.

    Args:
        qkv: (B, H, W, 3·C), float16, bfloat16, float32 or float64; any strides but 1 along the
            channels. q's channels come first, then k's and v's, heads side by side in each.
        pools: of q, k and v; with one stride for both axes and, those that pool, the same heads,
            kernel, padding and eps. Their parameters may have another type than ``qkv``.
        packed: the pools' parameters if :func:`packed_parameters` has put them together already.

    Returns:
        (B, H', W', C) of each, contiguous and of ``qkv``'s type; a part that is not pooled is a
        view of ``qkv``.

    Raises:
        ValueError: the pools differ in more than strides and parameters.
    """
    parts = qkv.chunk(3, dim=-1)
    _check(pools)
    if all(pool.kernel is None for pool in pools):
        return parts
    outputs = tuple(
        part.new_empty(len(qkv), *pool.output_size(qkv.shape[1:3]), part.shape[-1])
        if pool.kernel is not None
        else part
        for part, pool in zip(parts, pools, strict=True)
    )
    launch = _over_outputs(qkv, pools, forward_tile(qkv.device, _case(qkv, pools)))
    packed = packed_parameters(pools) if packed is None else packed
    _run(pool_forward_kernel, launch, qkv, packed, outputs)
    return outputs


def pool_backward(
    qkv: Tensor,
    pools: Sequence["HeadPool"],
    grads: Sequence[Tensor],
    packed: Tensor | None = None,
    bias_type: torch.dtype | None = None,
) -> tuple[Tensor, list[tuple[Tensor | None, Tensor | None, Tensor | None]], Tensor | None]:
    """Gradients of :func:`pool_forward`; pools again, so that only ``qkv`` is saved.

    The gradient of the convolution's output lies between the two kernels in ``qkv``'s type, as
    PyTorch's does, which also rounds that output: no error beyond PyTorch's.

    Bytes, as in :func:`pool_forward`: (f + 3·r + 1)·n for each pooled part, 2·n for one that is
    not, and 2·(T + 2)·4 / (S·itemsize)·r·n of sums for each strip of S places, written and read:
    0.2·r·n in 16 bits with nine taps and strips of 32 × 8. Plain PyTorch moves (3 + f + 7·r)·n:
    LayerNorm's gradients of its input (3·r) and parameters (2·r), the convolution's (r + 1, and f
    + r), and a copy into the projection's gradient (2). It saves (1 + r)·n in forward.

    Args:
        qkv, pools, packed: as in :func:`pool_forward`.
        grads: (B, H', W', C) of its three outputs, in their type.
        bias_type: asks for the sum of the gradient of ``qkv`` over all places, in this type.

    Returns:
        The gradient of ``qkv``, contiguous; for q, k and v those of the pool's parameters: of the
        convolution's weight (d, 1, kh, kw) and the norm's weight and bias (d), in their types; the
        sum that was asked for, (3·C). None where there is no such parameter or sum. The same bits
        on every run.

    Raises:
        ValueError: as :func:`pool_forward`.
    """
    _check(pools)
    if all(pool.kernel is None for pool in pools):
        joined = torch.cat(list(grads), dim=-1)
        total = None if bias_type is None else column_sums(joined.flatten(0, 2)).to(bias_type)
        return joined, [(None, None, None)] * 3, total
    grads = [grad.contiguous() for grad in grads]
    convolved = [
        torch.empty_like(grad, dtype=qkv.dtype) if pool.kernel is not None else grad
        for grad, pool in zip(grads, pools, strict=True)
    ]
    packed = packed_parameters(pools) if packed is None else packed
    launch = _over_outputs(qkv, pools, backward_tile(qkv.device, _case(qkv, pools)))
    partial = packed.new_empty(launch.programs, *packed.shape[1:], dtype=accumulator_dtype(qkv))
    _run(pool_backward_kernel, launch, qkv, packed, tuple(grads), tuple(convolved), partial)
    starts = (0, launch.sizes.start_k, launch.sizes.start_v, launch.programs)
    by_part = [partial[start:end].flatten(1) for start, end in pairwise(starts)]
    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    launch = _over_inputs(grad_qkv, pools, gather_tile(qkv.device, _case(qkv, pools)))
    strides = tuple(0 if pool.kernel is None else pool.stride[0] for pool in pools)
    beside = None
    if bias_type is not None:
        strips = launch.programs // (3 * launch.sizes.heads)
        beside = partial.new_empty(strips, qkv.shape[3])
    _run(pool_gather_kernel, launch, grad_qkv, packed, tuple(convolved), beside, STRIDES=strides)
    parameters, total = _unpack(by_part, pools, beside)
    return grad_qkv, parameters, None if total is None else total.to(bias_type)


def packed_parameters(pools: Sequence["HeadPool"]) -> Tensor | None:
    """(3, T + 2, d): the convolution's taps, then the norm's weight and bias, in one copy.

    Channels come last, so that a warp reads a tap's weights from consecutive addresses. A part
    that is not pooled gets the parameters of another, which nothing reads; None where none is.
    """
    if all(pool.kernel is None for pool in pools):
        return None
    rows, filler = [], _first_pooled(pools)
    for pool in pools:
        kernel, norm_weight, norm_bias = (filler if pool.kernel is None else pool).parameters
        channels = len(kernel)
        norm_weight = kernel.new_ones(channels) if norm_weight is None else norm_weight
        norm_bias = kernel.new_zeros(channels) if norm_bias is None else norm_bias
        rows += [kernel.flatten(1).T, norm_weight[None], norm_bias[None]]
    return torch.cat(rows).view(3, -1, rows[0].shape[1])


def _unpack(
    partial: Sequence[Tensor], pools: Sequence["HeadPool"], beside: Tensor | None
) -> tuple[list[tuple[Tensor | None, Tensor | None, Tensor | None]], Tensor | None]:
    """Sums (P, (T + 2)·d) of q, k and v to gradients of kernels and of the norms' parameters.

    Those ``beside`` them, (P, N), are added by the same launch, to (N).
    """
    channels = len(_first_pooled(pools).kernel)
    types = {own.dtype for pool in pools for own in pool.parameters if own is not None}
    dtype = types.pop() if len(types) == 1 else partial[0].dtype
    taps = partial[0].shape[1] // channels - 2
    matrices = [*partial] if beside is None else [*partial, beside]
    *sums, total = [*row_sums(matrices, dtype, turned=(taps, channels)), None][:4]
    return [
        (None, None, None)
        if pool.kernel is None
        else tuple(
            None if own is None else grad.view(own.shape).to(own.dtype)
            for own, grad in zip(
                pool.parameters, of_part.split([taps * channels, channels, channels]), strict=True
            )
        )
        for pool, of_part in zip(pools, sums, strict=True)
    ], total


def _first_pooled(pools: Sequence["HeadPool"]) -> "HeadPool":
    return next(pool for pool in pools if pool.kernel is not None)


def _case(qkv: Tensor, pools: Sequence["HeadPool"]) -> Case:
    return Case(qkv.dtype, len(_first_pooled(pools).kernel))


def _check(pools: Sequence["HeadPool"]) -> None:
    pooled = [pool for pool in pools if pool.kernel is not None]
    kinds = {
        (pool.heads, tuple(pool.padding), pool.eps, tuple(pool.kernel.shape)) for pool in pooled
    }
    if len(kinds) > 1:
        raise ValueError(f"q, k and v must be pooled alike but for their strides, got {pools}")
    if any(pool.stride[0] != pool.stride[1] for pool in pooled):
        raise ValueError(f"strides must be the same along both axes, got {pools}")


def _over_outputs(qkv: Tensor, pools: Sequence["HeadPool"], tile: Blocks) -> _Launch:
    """Launch of a kernel whose programs make a strip of pooled places each."""
    sizes = [pool.output_size(qkv.shape[1:3]) for pool in pools]
    maps = [
        (0, 0) if pool.kernel is None else size for pool, size in zip(pools, sizes, strict=True)
    ]
    return _launch(qkv, pools, sizes, maps, tile)


def _over_inputs(qkv: Tensor, pools: Sequence["HeadPool"], tile: Blocks) -> _Launch:
    """Launch of a kernel whose programs make a strip of places before pooling each.

    Strips begin above the map, where its padding does, and have a multiple of all strides of rows.
    """
    sizes = [pool.output_size(qkv.shape[1:3]) for pool in pools]
    height, width = qkv.shape[1] + _first_pooled(pools).padding[0], qkv.shape[2]
    multiple = lcm(*(pool.stride[0] for pool in pools))
    return _launch(qkv, pools, sizes, [(height, width)] * len(pools), tile, multiple)


def _launch(
    qkv: Tensor,
    pools: Sequence["HeadPool"],
    sizes: Sequence[tuple[int, int]],
    maps: Sequence[tuple[int, int]],
    tile: Blocks,
    multiple: int = 1,
) -> _Launch:
    """Launch over strips of the three maps; lower ones than the tile where few would be made."""
    pooled = _first_pooled(pools)

    def programs(rows: int) -> list[int]:
        return [
            len(qkv) * pooled.heads * ceil_div(height, rows) * ceil_div(width, tile.keys)
            for height, width in maps
        ]

    rows = tile.queries
    while rows > LEAST_ROWS and sum(programs(rows)) < ENOUGH_PROGRAMS:
        rows //= 2
    rows = ceil_div(rows, multiple) * multiple
    counts = programs(rows)
    channels, _, *kernel = pooled.kernel.shape
    heights, widths = zip(*sizes, strict=True)
    pool_strides = tuple(pool.stride[0] for pool in pools)
    starts = counts[0], counts[0] + counts[1]
    return _Launch(
        sum(counts),
        PoolSizes(*starts, pooled.heads, rows, *qkv.shape[1:3], *heights, *widths, *pool_strides),
        InputStrides(*qkv.stride()[:3], qkv.shape[3] // 3),
        PoolConstants(
            channels, *kernel, *pooled.padding, pooled.eps, power_of_2(channels), tile.keys,
            accumulator(qkv),
        ),
        tile,
    )  # fmt: skip


def _run(kernel: Any, launch: _Launch, qkv: Tensor, *arguments: Any, **constants: Any) -> None:
    if launch.programs:
        with torch.cuda.device_of(qkv):  # Triton launches on the current device
            kernel[(launch.programs,)](
                qkv, *arguments, *launch.sizes, launch.strides, CONST=launch.constants,
                **launch.blocks.options, **constants,
            )  # fmt: skip
