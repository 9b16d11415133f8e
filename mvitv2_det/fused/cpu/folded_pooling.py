"""Linear layer and strided pooling in one dense convolution, for keys and values.

A 3×3 kernel at stride 4 reads 9 of 16 projected tokens, and of the projected map a sixteenth is
left. Pooling after projection is a convolution with the weight W[o, i] · w[o mod d, y, x]: it has
fewer products than the projection alone, and the projected map is never made. The projection's
bias, which the zero padding cuts at the border, becomes a small map of its own.

Axes: B images, H × W tokens of C channels, O = h·d channels out, m maps side by side (keys and
values), sizes with a dash are pooled ones.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import tokens as kernels
from ..applying import applied
from ..head_pool import HeadPool
from ..tokens import NormGradient


def folding_saves_work(pools: Sequence[HeadPool]) -> bool:
    """Whether one convolution has fewer products than the projections that are then pooled so."""
    first = pools[0]
    if (
        first.kernel is None
        or first.kernel.dim() > 4
        or first.kernel[0].numel() >= first.stride[0] * first.stride[1]
    ):
        return False
    return all(first.pools_like(pool) for pool in pools)


def folded_projection(
    x: Tensor,
    norm: nn.LayerNorm,
    weight: Tensor,
    bias: Tensor | None,
    pools: Sequence[HeadPool],
) -> list[Tensor]:
    """The convolutions of ``pools``, without their norms, of the projected and normalised ``x``.

    Args:
        x: (B, H, W, C).
        norm: normalises its channels.
        weight: (m·O, C), rows of the projection for each of the pools.
        bias: (m·O), or None.
        pools: m pools for which :func:`folding_saves_work`.

    Returns:
        m maps (B, H', W', O).
    """
    dtype = kernels.product_dtype(x)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    taps = [pool.with_kernel_of(dtype).kernel for pool in pools]
    with torch.autocast(x.device.type, enabled=False):
        pooled = applied(
            _FoldedProjection, x, norm.weight, norm.bias, norm.eps, pools[0], weight, bias, *taps
        )
    return list(pooled.chunk(len(pools), dim=-1))


class _FoldedProjection(torch.autograd.Function):
    """Saves the incoming tokens alone for backward, and normalises them again."""

    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, eps, pool, weight, bias, *taps):
        ctx.save_for_backward(x, norm_weight, norm_bias, weight, bias, *taps)
        ctx.eps, ctx.pool = eps, pool
        normed, *_ = kernels.layer_norm_forward(x, norm_weight, norm_bias, eps, weight.dtype)
        return _convolve(normed, *_fold(weight, bias, taps, pool, x.shape[1:3]), pool)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, norm_weight, norm_bias, *parameters = ctx.saved_tensors
        pool, grad = ctx.pool, grad.permute(0, 3, 1, 2)
        normed = kernels.layer_norm_forward(x, norm_weight, norm_bias, ctx.eps, grad.dtype)
        with torch.enable_grad():
            leaves: list[Any] = [
                None if p is None else p.detach().requires_grad_() for p in parameters
            ]
            weight, bias, *taps = leaves
            dense, border = _fold(weight, bias, taps, pool, x.shape[1:3])
        tokens, no_padding = normed[0].permute(0, 3, 1, 2), [0, 0]
        options = (pool.stride, pool.padding, [1, 1], False, no_padding, 1)
        grad_tokens, grad_dense, _ = torch.ops.aten.convolution_backward(
            grad, tokens, dense.detach(), None, *options, [True, True, False]
        )
        folded, grads = [dense], [grad_dense]
        if border is not None:
            folded, grads = [*folded, border], [*grads, grad.sum(0).permute(1, 2, 0)]
        inputs = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(folded, inputs, grads))
        grad_parameters = [None if leaf is None else next(found) for leaf in leaves]
        grad_norm = NormGradient(kernels, norm_weight, norm_bias)
        grad_x = grad_norm.backward(grad_tokens.permute(0, 2, 3, 1).contiguous(), x, normed)
        return grad_x, grad_norm.weight, grad_norm.bias, None, None, *grad_parameters


def _fold(
    weight: Tensor, bias: Tensor | None, taps: Sequence[Tensor], pool: HeadPool, size: torch.Size
) -> tuple[Tensor, Tensor | None]:
    """The dense convolution's weight (m·O, C, y, x), and what the bias adds, (H', W', m·O)."""
    heads = len(weight) // sum(len(kernel) for kernel in taps)
    all_taps = torch.cat([kernel.repeat(heads, 1, 1, 1) for kernel in taps])  # (m·O, 1, y, x)
    dense = (weight[:, :, None, None] * all_taps).contiguous(memory_format=torch.channels_last)
    if bias is None:
        return dense, None
    inside = F.conv2d(weight.new_ones(1, 1, *size), all_taps, None, pool.stride, pool.padding)
    return dense, inside[0].permute(1, 2, 0) * bias


def _convolve(normed: Tensor, dense: Tensor, border: Tensor | None, pool: HeadPool) -> Tensor:
    """(B, H, W, C) to (B, H', W', m·O)."""
    pooled = F.conv2d(normed.permute(0, 3, 1, 2), dense, None, pool.stride, pool.padding)
    pooled = pooled.permute(0, 2, 3, 1)
    return pooled if border is None else pooled + border
