"""Pooling of q, k and v in one launch over their common projection: P_Q, P_K and P_V of Eq. 1.

A depthwise convolution whose weights the heads share, then LayerNorm over each head's channels:
what ``HeadPool.run`` in :mod:`mvitv2_det.attention.pooling` does, part by part.

Axes: B images, H × W tokens, C = h·d channels of h heads, H' × W' tokens of a pooled part,
P places of a tile, D the power of two that d is padded to, T = kh·kw taps of the convolution.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .pooling_kernels import backward_kernel, forward_kernel, gather_kernel

if TYPE_CHECKING:
    from ..head_pool import HeadPool

_PARTS = "qkv"


class _Tile(NamedTuple):
    """Places that a program computes, all channels of one head at each, and its warps."""

    height: int
    width: int
    warps: int


def _tile(channels: int, halved: bool = False) -> _Tile:
    """For heads of so many channels; ``halved`` where a kernel holds twice the values of a place.

    Tiles are two-dimensional, so that taps meet in the cache: a 3×3 convolution over 8×8 places
    reads 100, over 1×64 it reads 198. A thread has 32 values, so that four or more 16-byte loads
    are under way; the smallest map (25×34 tokens, 8 heads) makes 160 programs for each part, more
    than an H100 has multiprocessors. Programs of eight warps are the widest that spill nothing.
    """
    padded = triton.next_power_of_2(channels)
    height = max(min(1024 // padded, 8) // (2 if halved else 1), 1)
    threads = height * 8 * padded // (16 if halved else 32)
    return _Tile(height, 8, min(max(threads // 32, 1), 8))


def pool_forward(qkv: Tensor, pools: Sequence["HeadPool"]) -> tuple[Tensor, Tensor, Tensor]:
    """Pools and normalises q, k and v.

    Bytes, with n = B·H·W·C·itemsize of a part, r = H'·W' / (H·W) and f = min(T·r, 1) of the places
    read: (f + r)·n for each pooled part. Plain PyTorch moves (2 + f + 3·r)·n: it copies the part
    out of the projection, writes the convolution's output, reads it, and writes it normalised.

    Args:
        qkv: (B, H, W, 3·C), float16, bfloat16, float32 or float64; any strides but 1 along the
            channels. q's channels come first, then k's and v's, heads side by side in each.
        pools: of q, k and v; with one stride for both axes and, those that pool, the same heads,
            kernel, padding and eps. Their parameters may have another type than ``qkv``.

    Returns:
        (B, H', W', C) of each, contiguous and of ``qkv``'s type; a part that is not pooled is a
        view of ``qkv``.

    Raises:
        ValueError: the pools differ in more than strides and parameters.
    """
    parts = qkv.chunk(3, dim=-1)
    _check(pools)
    if not any(_pooled(pool) for pool in pools):
        return parts
    outputs = tuple(
        part.new_empty(len(qkv), *pool.output_size(qkv.shape[1:3]), part.shape[-1])
        if _pooled(pool)
        else part
        for part, pool in zip(parts, pools, strict=True)
    )
    programs, geometry = _over_outputs(qkv, pools, _tile(_head_dim(pools)))
    _launch(forward_kernel, programs, qkv, packed_parameters(pools), *outputs, **geometry)
    return outputs


def pool_backward(
    qkv: Tensor, pools: Sequence["HeadPool"], grads: Sequence[Tensor]
) -> tuple[Tensor, list[tuple[Tensor | None, Tensor | None, Tensor | None]]]:
    """Gradients of :func:`pool_forward`; pools again, so that ``qkv`` is all that is kept.

    The gradient of the convolution's output lies between the two kernels in ``qkv``'s type, as
    PyTorch's does, which also rounds that output: no error beyond PyTorch's.

    Bytes, as in :func:`pool_forward`: (f + 3·r + 1)·n for each pooled part, 2·n for one that is
    not, and 2·(T + 2)·4 / (P·itemsize)·r·n of sums for each tile, written and read: 0.7·r·n in 16
    bits with nine taps. Plain PyTorch moves (3 + f + 7·r)·n: LayerNorm's gradients of its input
    (3·r) and parameters (2·r), the convolution's (r + 1, and f + r), and a copy into the
    projection's gradient (2). It keeps (1 + r)·n since forward.

    Args:
        qkv, pools: as in :func:`pool_forward`.
        grads: (B, H', W', C) of its three outputs, in their type.

    Returns:
        The gradient of ``qkv``, contiguous, and for q, k and v those of the pool's parameters: of
        the convolution's weight (d, 1, kh, kw) and the norm's weight and bias (d), in their types;
        None where there is no such parameter. The same bits on every run.

    Raises:
        ValueError: as :func:`pool_forward`.
    """
    _check(pools)
    if not any(_pooled(pool) for pool in pools):
        return torch.cat(list(grads), dim=-1), [(None, None, None)] * 3
    grads = [grad.contiguous() for grad in grads]
    convolved = [
        torch.empty_like(grad, dtype=qkv.dtype) if _pooled(pool) else grad
        for grad, pool in zip(grads, pools, strict=True)
    ]
    packed = packed_parameters(pools)
    programs, geometry = _over_outputs(qkv, pools, _tile(_head_dim(pools), qkv.itemsize > 2))
    partial = packed.new_empty(programs, *packed.shape[1:], dtype=_accumulator(qkv))
    _launch(backward_kernel, programs, qkv, packed, *grads, *convolved, partial, **geometry)
    starts = (0, geometry["start_k"], geometry["start_v"], programs)
    parameters = [
        _unpack(partial[start:end].sum(0), pool) if _pooled(pool) else (None, None, None)
        for start, end, pool in zip(starts, starts[1:], pools, strict=False)
    ]
    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    programs, geometry = _over_inputs(grad_qkv, pools, _tile(_head_dim(pools)))
    _launch(gather_kernel, programs, grad_qkv, packed, *convolved, **geometry)
    return grad_qkv, parameters


def packed_parameters(pools: Sequence["HeadPool"]) -> Tensor:
    """(3, T + 2, d): the convolution's taps, then the norm's weight and bias, in one copy.

    Channels come last, so that a warp reads a tap's weights from consecutive addresses. A part
    that is not pooled has another's parameters, which nothing reads.
    """
    rows, filler = [], next(pool for pool in pools if _pooled(pool))
    for pool in pools:
        weight, norm_weight, norm_bias = (pool if _pooled(pool) else filler).parameters
        channels = len(weight)
        norm_weight = weight.new_ones(channels) if norm_weight is None else norm_weight
        norm_bias = weight.new_zeros(channels) if norm_bias is None else norm_bias
        rows += [weight.flatten(1).T, norm_weight[None], norm_bias[None]]
    return torch.cat(rows).view(3, -1, rows[0].shape[1])


def _unpack(sums: Tensor, pool: "HeadPool") -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A (T + 2, d) gradient as the parameters are."""
    weight, *norm = pool.parameters
    grad_weight = sums[:-2].T.reshape(weight.shape).to(weight.dtype)
    grad_norm = [
        None if parameter is None else grad.to(parameter.dtype)
        for parameter, grad in zip(norm, sums[-2:], strict=True)
    ]
    return grad_weight, *grad_norm


def _pooled(pool: "HeadPool") -> bool:
    return pool.parameters[0] is not None


def _head_dim(pools: Sequence["HeadPool"]) -> int:
    return next(len(pool.parameters[0]) for pool in pools if _pooled(pool))


def _check(pools: Sequence["HeadPool"]) -> None:
    pooled = [pool for pool in pools if _pooled(pool)]
    kinds = {
        (pool.heads, tuple(pool.padding), pool.eps, tuple(pool.parameters[0].shape))
        for pool in pooled
    }
    if len(kinds) > 1:
        raise ValueError(f"q, k and v must be pooled alike but for their strides, got {pools}")
    if any(pool.stride[0] != pool.stride[1] for pool in pooled):
        raise ValueError(f"strides must be the same along both axes, got {pools}")


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _over_outputs(
    qkv: Tensor, pools: Sequence["HeadPool"], tile: _Tile
) -> tuple[int, dict[str, Any]]:
    """Number of programs, and a kernel's arguments, where each makes a tile of pooled places."""
    sizes = [pool.output_size(qkv.shape[1:3]) for pool in pools]
    counts = [
        _programs(qkv, size, pool, tile) if _pooled(pool) else 0
        for size, pool in zip(sizes, pools, strict=True)
    ]
    return _geometry(qkv, pools, sizes, counts, tile)


def _over_inputs(
    qkv: Tensor, pools: Sequence["HeadPool"], tile: _Tile
) -> tuple[int, dict[str, Any]]:
    """As :func:`_over_outputs`, where each program makes a tile of places before pooling."""
    sizes = [pool.output_size(qkv.shape[1:3]) for pool in pools]
    counts = [_programs(qkv, qkv.shape[1:3], pool, tile) for pool in pools]
    return _geometry(qkv, pools, sizes, counts, tile)


def _programs(qkv: Tensor, size: Sequence[int], pool: "HeadPool", tile: _Tile) -> int:
    down, across = triton.cdiv(size[0], tile.height), triton.cdiv(size[1], tile.width)
    return len(qkv) * pool.heads * down * across


def _geometry(
    qkv: Tensor,
    pools: Sequence["HeadPool"],
    sizes: Sequence[tuple[int, int]],
    counts: Sequence[int],
    tile: _Tile,
) -> tuple[int, dict[str, Any]]:
    """What all kernels are told about shapes: programs [0, start_k) are q's, then k's, then v's."""
    pooled = next(pool for pool in pools if _pooled(pool))
    channels, _, kernel_h, kernel_w = pooled.parameters[0].shape
    arguments = {
        "start_k": counts[0],
        "start_v": counts[0] + counts[1],
        "heads": pooled.heads,
        "height": qkv.shape[1],
        "width": qkv.shape[2],
        "across_b": qkv.stride(0),
        "across_h": qkv.stride(1),
        "across_w": qkv.stride(2),
        "of_part": qkv.shape[3] // 3,
        "HEAD_DIM": channels,
        "KERNEL_H": kernel_h,
        "KERNEL_W": kernel_w,
        "PADDING_H": pooled.padding[0],
        "PADDING_W": pooled.padding[1],
        "EPS": pooled.eps,
        "D": triton.next_power_of_2(channels),
        "TILE_H": tile.height,
        "TILE_W": tile.width,
        "ACCUMULATOR": tl.float64 if qkv.dtype == torch.float64 else tl.float32,
        "num_warps": tile.warps,
    }
    for part, pool, size in zip(_PARTS, pools, sizes, strict=True):
        arguments[f"height_{part}"], arguments[f"width_{part}"] = size
        # 0: not pooled, what is read in the pooled layout is copied.
        arguments[f"stride_{part}"] = pool.stride[0] if _pooled(pool) else 0
    return sum(counts), arguments


def _launch(kernel: Any, programs: int, *tensors: Tensor, **arguments: Any) -> None:
    if programs:
        with torch.cuda.device_of(tensors[0]):
            kernel[(programs,)](*tensors, **arguments)
