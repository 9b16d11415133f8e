"""Launch arguments that the kernels share: sizes of blocks, dtypes, and maps with their strides.

Arguments that belong together are passed as one named tuple, which Triton unpacks.
"""

import os
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

PROCESSORS = 132  # of an H100; a constant, so that sums are split in the same way on every GPU
MIN_DOT = 16  # smallest side of a product on tensor cores


@dataclass(frozen=True)
class Blocks:
    """Sizes of a kernel's blocks and how it is compiled.

    Attributes:
        queries, keys: queries and keys of a block.
        warps: warps of a program.
        stages: stages of the software pipeline.
        registers: limit per thread, set where one more program then fits on a processor.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """Keyword arguments of a launch."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options if self.registers is None else {**options, "maxnreg": self.registers}


class Map(NamedTuple):
    """A (B, H, W, C) map as a kernel argument; its channels must be contiguous."""

    start: Tensor
    stride_b: int
    stride_y: int
    stride_x: int

    @classmethod
    def of(cls, x: Tensor) -> "Map":
        """The map of a tensor, with its strides in elements."""
        return cls(x, *x.stride()[:3])


def ceil_div(a: int, b: int) -> int:
    """The quotient, rounded up; ``triton.cdiv`` takes the host many times as long."""
    return -(-a // b)


def power_of_2(size: int) -> int:
    """The least power of two that is not less; Triton's takes the host as long as its division."""
    return 1 << (size - 1).bit_length()


def padded(size: int) -> int:
    """The power of two that a side of a product is padded to."""
    return max(power_of_2(size), MIN_DOT)


def channel_tiles(channels: int, least: int = MIN_DOT) -> tuple[int, int]:
    """Splits channels into two powers of two, the second ``least`` or more; 0 if one is enough.

    96 channels become 64 and 32, and 72 become 64 and 16: padding them to 128 would waste a
    quarter or more of tensor cores and registers.
    """
    whole = padded(channels)
    first = whole // 2
    rest = max(padded(channels - first), least)
    return (first, rest) if first >= MIN_DOT and first + rest < whole else (whole, 0)


def accumulator_dtype(x: Tensor) -> torch.dtype:
    """Dtype of sums, statistics and log-sum-exps: float64 for float64, float32 otherwise."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def accumulator(x: Tensor) -> tl.dtype:
    """Triton's name of :func:`accumulator_dtype`."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def operand(x: Tensor) -> tl.dtype:
    """Triton's dtype of the operands of products.

    Triton's interpreter multiplies the bits of bfloat16 as integers. There operands are widened
    to float32, which changes no product.
    """
    if x.dtype == torch.bfloat16 and os.environ.get("TRITON_INTERPRET") == "1":
        return tl.float32
    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(x.dtype, accumulator(x))
