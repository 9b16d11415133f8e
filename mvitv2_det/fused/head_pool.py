"""Pooling and LayerNorm of all heads of q, k or v at once, channels last.

Axes: B images, H × W tokens, C = h·D channels of h heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn


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
