"""Pooling of token maps: P_Q, P_K, P_V of Eq. 1 and the pooled skip connection.

Axes: N maps (batch × heads), H × W tokens, D channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def head_pool(channels: int, kernel: tuple[int, int], stride: int) -> nn.Conv2d:
    """The pooling operator of one head's q, k or v: a depthwise convolution."""
    padding = tuple(side // 2 for side in kernel)
    return nn.Conv2d(
        channels, channels, kernel, stride=stride, padding=padding, groups=channels, bias=False
    )


def skip_pool(stride: int) -> nn.Module:
    """The max pooling of the skip connection where queries are strided."""
    if stride == 1:
        return nn.Identity()
    kernel = stride + 1
    return nn.MaxPool2d(kernel, stride, kernel // 2)


def pool_skip_map(x: Tensor, pool: nn.Module) -> Tensor:
    """``pool_map`` with :func:`skip_pool`, keeping 4 bytes per pooled value for backward.

    PyTorch's own max pooling keeps the whole map and 8 bytes per pooled value.
    """
    if type(pool) is not nn.MaxPool2d or torch.compiler.is_compiling() or not x.requires_grad:
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
        kernel, stride, padding = ([size, size] for size in ctx.options)
        shaped = grad.new_empty(ctx.shape).permute(0, 3, 1, 2)  # its values are not read
        grad_x = torch.ops.aten.max_pool2d_with_indices_backward(
            grad.permute(0, 3, 1, 2), shaped, kernel, stride, padding, [1, 1], False, places.long()
        )
        return grad_x.permute(0, 2, 3, 1), None, None, None


def pool_map(x: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a channels-first pooling to a channels-last map: (N, H, W, D) to (N, H', W', D)."""
    return pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class HeadPool:
    """Pooling and LayerNorm of all heads of q, k or v at once, without a change of layout.

    Attributes:
        heads: number of heads.
        stride, padding: of the convolution.
        eps: of the norm.
        parameters: the convolution's weight and the norm's weight and bias, None where it has
            none; without a convolution's weight nothing is done.
    """

    heads: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    eps: float
    parameters: tuple[Tensor | None, ...] = field(compare=False, repr=False)

    @classmethod
    def of(cls, pool: nn.Conv2d | None, norm: nn.LayerNorm | None, heads: int) -> "HeadPool":
        """What :func:`head_pool` and a norm of its channels do, or nothing without them."""
        if pool is None:
            return cls(heads, (1, 1), (0, 0), 0.0, (None, None, None))
        return cls(
            heads, pool.stride, pool.padding, norm.eps, (pool.weight, norm.weight, norm.bias)
        )

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width that (H, W) is pooled to."""
        if self.parameters[0] is None:
            return tuple(size)
        kernel = self.parameters[0].shape[2:]
        return tuple(
            (side + 2 * padding - across) // stride + 1
            for side, padding, across, stride in zip(
                size, self.padding, kernel, self.stride, strict=True
            )
        )

    def pools_like(self, other: "HeadPool") -> bool:
        """Whether both pool maps with kernels, strides and padding of the same sizes."""
        mine, others = (
            (pool.stride, pool.padding, None if kernel is None else kernel.shape)
            for pool, kernel in ((self, self.parameters[0]), (other, other.parameters[0]))
        )
        return mine == others

    def run(
        self, x: Tensor, weight: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None
    ) -> Tensor:
        """(B, H, W, C) to (B, H', W', C), with heads side by side along C."""
        if weight is None:
            return x
        weight = weight.repeat(self.heads, 1, 1, 1)
        x = x.permute(0, 3, 1, 2)
        x = F.conv2d(x, weight, None, self.stride, self.padding, groups=x.shape[1])
        return self.normalise(x.permute(0, 2, 3, 1), norm_weight, norm_bias)

    def normalise(self, x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None) -> Tensor:
        """LayerNorm of each head's channels, (B, H', W', C)."""
        x = x.unflatten(-1, (self.heads, -1))
        return F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, self.eps).flatten(-2)

    def after_convolution(self) -> "HeadPool":
        """What is left to do of it where the convolution has been computed already."""
        parameters = (None, *self.parameters[1:])
        return _HeadNorm(self.heads, (1, 1), (0, 0), self.eps, parameters)


class _HeadNorm(HeadPool):
    def run(
        self, x: Tensor, weight: None, norm_weight: Tensor | None, norm_bias: Tensor | None
    ) -> Tensor:
        return self.normalise(x, norm_weight, norm_bias)
