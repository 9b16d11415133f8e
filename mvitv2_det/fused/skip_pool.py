"""Max pooling of the skip connection with little saved for backward.

Axes: B images, H × W tokens, C channels. The T frames of a clip lie below each other in one map,
whose height is then T·H.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..attention.pooling import pool_map


def pool_skip(x: Tensor, pool: nn.Module, frames: int = 1) -> Tensor:
    """Pools (B, H, W, C) by ``attention.pooling.skip_pool``, saving 4 bytes per pooled value.

    PyTorch's own max pooling saves the whole map and 8 bytes per pooled value. Frames are pooled
    one by one: the kernel covers one.
    """
    if isinstance(pool, nn.MaxPool3d):
        kernel, stride, padding = (
            cast("tuple[int, int, int]", sides)[1:]
            for sides in (pool.kernel_size, pool.stride, pool.padding)
        )
        pool = nn.MaxPool2d(kernel, stride, padding)
        by_frames = x.unflatten(1, (frames, -1)).flatten(0, 1)
        return pool_skip(by_frames, pool).unflatten(0, (-1, frames)).flatten(1, 2)
    if not isinstance(pool, nn.MaxPool2d) or not x.requires_grad:
        return pool_map(x, pool)
    return _MaxPool.apply(x, pool.kernel_size, pool.stride, pool.padding)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kernel, stride, padding):
        ctx.shape, ctx.options = x.shape, (kernel, stride, padding)
        values, places = F.max_pool2d_with_indices(x.permute(0, 3, 1, 2), kernel, stride, padding)
        ctx.save_for_backward(places.to(torch.int32))
        return values.permute(0, 2, 3, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (places,) = ctx.saved_tensors
        kernel, stride, padding = ctx.options
        shaped = grad.new_empty(ctx.shape).permute(0, 3, 1, 2)  # its values are not read
        grad_x = torch.ops.aten.max_pool2d_with_indices_backward(
            grad.permute(0, 3, 1, 2), shaped, kernel, stride, padding, [1, 1], False, places.long()
        )
        return grad_x.permute(0, 2, 3, 1), None, None, None
