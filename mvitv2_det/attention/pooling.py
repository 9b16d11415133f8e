"""Pooling of token maps: P_Q, P_K, P_V of Eq. 1 and the pooled skip connection.

Axes: N = batch × heads, H × W tokens, D channels of a head.
"""

from collections.abc import Callable

from torch import Tensor, nn


def head_pool(channels: int, kernel: tuple[int, int], stride: int) -> nn.Conv2d:
    """The pooling operator of one head's q, k or v: a depthwise convolution."""
    padding = (kernel[0] // 2, kernel[1] // 2)
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
