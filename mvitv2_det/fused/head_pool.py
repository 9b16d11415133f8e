"""Pooling and LayerNorm of all heads of q, k or v at once, channels last.

Axes: B images, H × W tokens, C = h·d channels of h heads; sizes with a dash are pooled ones. The T
frames of a clip lie below each other in one map, whose height is then T·H.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class HeadPool:
    """Pooling and LayerNorm of all heads of q, k or v at once, without a change of layout.

    Attributes:
        heads: number of heads.
        stride, padding: of the convolution.
        eps: of the norm.
        kernel: the convolution's weight (d, 1, y, x), or of clips (d, 1, t, y, x), the same for
            all heads; None for no pooling.
        norm_weight, norm_bias: the norm's parameters, (d), or None where it has none.
        normalises: whether there is a norm; without pooling there is none, except where the
            convolution has been computed already.
        frames: T, 1 for images. A clip is pooled over as many frames before as after each.
    """

    heads: int
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    eps: float
    kernel: Tensor | None = field(compare=False, repr=False)
    norm_weight: Tensor | None = field(compare=False, repr=False)
    norm_bias: Tensor | None = field(compare=False, repr=False)
    normalises: bool = True
    frames: int = 1

    @classmethod
    def of(
        cls,
        pool: nn.Conv2d | nn.Conv3d | None,
        norm: nn.Module | None,
        heads: int,
        frames: int = 1,
    ) -> "HeadPool":
        """What ``attention.pooling.head_pool`` and a norm of its channels do; nothing without."""
        if pool is None:
            return cls(
                heads, (1, 1), (0, 0), 0.0, None, None, None, normalises=False, frames=frames
            )
        norm, padding = cast(nn.LayerNorm, norm), cast("tuple[int, ...]", pool.padding)
        parameters = pool.weight, norm.weight, norm.bias
        return cls(heads, pool.stride[-2:], padding[-2:], norm.eps, *parameters, frames=frames)

    @property
    def parameters(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The tensors that :meth:`with_parameters` replaces, in its order."""
        return self.kernel, self.norm_weight, self.norm_bias

    def with_parameters(
        self, kernel: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None
    ) -> "HeadPool":
        """The same pooling with other tensors, such as those that an autograd function is given."""
        return replace(self, kernel=kernel, norm_weight=norm_weight, norm_bias=norm_bias)

    def with_kernel_of(self, dtype: torch.dtype) -> "HeadPool":
        """The same pooling of maps of that type; the norm takes them with its own weights."""
        return replace(self, kernel=None if self.kernel is None else self.kernel.to(dtype))

    def without_convolution(self) -> "HeadPool":
        """The norm alone, for maps that have been convolved already."""
        return replace(self, stride=(1, 1), padding=(0, 0), kernel=None)

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width that (H, W) is pooled to."""
        height, width = size[0] // self.frames, size[1]
        if self.kernel is not None:
            height, width = (
                (side + 2 * padding - across) // stride + 1
                for side, padding, across, stride in zip(
                    (height, width), self.padding, self.kernel.shape[-2:], self.stride, strict=True
                )
            )
        return self.frames * height, width

    def pools_like(self, other: "HeadPool") -> bool:
        """Whether both pool maps with kernels, strides and padding of the same sizes."""
        mine, others = (
            (pool.stride, pool.padding, None if pool.kernel is None else pool.kernel.shape)
            for pool in (self, other)
        )
        return mine == others

    def __call__(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H', W', C), with heads side by side along C."""
        if self.kernel is not None:
            x = self._convolved(x, self.kernel)
        if not self.normalises:
            return x
        x = x.unflatten(-1, (self.heads, -1))
        x = F.layer_norm(x, x.shape[-1:], self.norm_weight, self.norm_bias, self.eps)
        return x.flatten(-2)

    def _convolved(self, x: Tensor, kernel: Tensor) -> Tensor:
        kernel = kernel.repeat(self.heads, *[1] * (kernel.dim() - 1))
        if kernel.dim() == 4:
            return self._convolved_frames(x, kernel)
        return self._convolved_clip(x.unflatten(1, (self.frames, -1)), kernel).flatten(1, 2)

    def _convolved_clip(self, x: Tensor, kernel: Tensor) -> Tensor:
        """(B, T, H, W, C) to (B, T, H', W', C): each tap in time is a convolution of frames."""
        batch, middle = len(x), kernel.shape[2] // 2
        total = None
        # The tap that no frame misses comes first; the others are added to a part of its frames.
        for tap in sorted(range(kernel.shape[2]), key=lambda tap: abs(tap - middle)):
            later = tap - middle
            size = self.frames - abs(later)
            if size <= 0:
                continue
            read = x.narrow(1, max(later, 0), size).flatten(0, 1)
            part = self._convolved_frames(read, kernel[:, :, tap]).unflatten(0, (batch, size))
            if total is None:
                total = part
            else:
                before = max(-later, 0)
                total.narrow(1, before, size).add_(part)
        return cast(Tensor, total)

    def _convolved_frames(self, x: Tensor, kernel: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H', W', C)."""
        x = x.permute(0, 3, 1, 2)
        x = F.conv2d(x, kernel, None, self.stride, self.padding, groups=x.shape[1])
        return x.permute(0, 2, 3, 1)


def flat_parameters(pools: Iterable[HeadPool]) -> list[Tensor | None]:
    """The tensors of several pools, one after the other, as an autograd function takes them."""
    return [tensor for pool in pools for tensor in pool.parameters]


def with_flat_parameters(
    pools: Iterable[HeadPool], tensors: Iterable[Tensor | None]
) -> list[HeadPool]:
    """The pools with the tensors of a list that :func:`flat_parameters` made."""
    rest = iter(tensors)
    return [pool.with_parameters(next(rest), next(rest), next(rest)) for pool in pools]
