"""Pooling of token maps: P_Q, P_K, P_V of Eq. 1 and the pooled skip connection.

Axes: N = batch × heads; n axes of a map, H × W or T × H × W tokens; D channels of a head.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

_CONVOLUTIONS: dict[int, Callable[..., nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}


def convolution(axes: int) -> Callable[..., nn.Conv2d | nn.Conv3d]:
    """The convolution of maps with so many axes."""
    return _CONVOLUTIONS[axes]


def head_pool(channels: int, kernel: Sequence[int], stride: Sequence[int]) -> nn.Conv2d | nn.Conv3d:
    """The pooling operator of one head's q, k or v: a depthwise convolution."""
    return convolution(len(kernel))(
        channels,
        channels,
        (*kernel,),
        stride=(*stride,),
        padding=tuple(side // 2 for side in kernel),
        groups=channels,
        bias=False,
    )


def skip_pool(stride: Sequence[int]) -> nn.Module:
    """The max pooling of the skip connection where queries are strided."""
    if max(stride) == 1:
        return nn.Identity()
    kernel = [side + 1 if side > 1 else 1 for side in stride]
    pool = nn.MaxPool2d if len(stride) == 2 else nn.MaxPool3d
    return pool((*kernel,), (*stride,), tuple(side // 2 for side in kernel))


def pool_map(x: Tensor, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a channels-first pooling to a channels-last map: (N, *axes, D) to (N, *axes', D)."""
    # torch.onnx moves axes right only if they are counted from the first.
    return pool(x.movedim(x.dim() - 1, 1)).movedim(1, -1)
