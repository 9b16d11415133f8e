"""Pooling of token maps: P_Q, P_K, P_V of Eq. 1 and the pooled skip connection.

Axes: N maps (batch × heads), H × W tokens, D channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn


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
            none.
    """

    heads: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    eps: float
    parameters: tuple[Tensor | None, ...] = field(compare=False, repr=False)

    @classmethod
    def of(cls, pool: nn.Conv2d, norm: nn.LayerNorm, heads: int) -> "HeadPool":
        """What :func:`head_pool` and a norm of its channels do."""
        return cls(
            heads, pool.stride, pool.padding, norm.eps, (pool.weight, norm.weight, norm.bias)
        )

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width that (H, W) is pooled to."""
        kernel = self.parameters[0].shape[2:]
        return tuple(
            (side + 2 * padding - across) // stride + 1
            for side, padding, across, stride in zip(
                size, self.padding, kernel, self.stride, strict=True
            )
        )

    def run(
        self, x: Tensor, weight: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None
    ) -> Tensor:
        """(B, H, W, C) to (B, H', W', C), with heads side by side along C."""
        weight = weight.repeat(self.heads, 1, 1, 1)
        x = x.permute(0, 3, 1, 2)
        x = F.conv2d(x, weight, None, self.stride, self.padding, groups=x.shape[1])
        x = x.permute(0, 2, 3, 1).unflatten(-1, (self.heads, -1))
        return F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, self.eps).flatten(-2)
