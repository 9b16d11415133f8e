"""Sizes that may be symbols: what compilation, export and tracing put in their place.

A symbol that is compared becomes the one number that it stood for, and what is exported then
takes maps of one size alone. In compilation the answer becomes a condition, and images of which
it does not hold are compiled for anew.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def known(*sizes: int) -> bool:
    """Whether all sizes are numbers."""
    return all(isinstance(size, int) for size in sizes)


def surely_equal(sizes: Sequence[int], others: Sequence[int]) -> bool:
    """Whether sizes are equal, without asking what a symbol stands for: False where that matters.

    To Dynamo symbols are numbers, so :func:`known` tells nothing there.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        pairs = zip(sizes, others, strict=True)
        return all(statically_known_true(size == other) for size, other in pairs)
    return known(*sizes) and tuple(sizes) == tuple(others)


def cropped(x: Tensor, height: int, width: int) -> Tensor:
    """The first rows and columns of maps (N, H, W, C), (N, height, width, C).

    Where nothing is cropped, the view has another layout than where something is, and each would
    be compiled for. In compilation there is always something to crop: one more row and column,
    which the compiler never writes.
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        x = F.pad(x, (0, 0, 0, 1, 0, 1))
    return x[:, :height, :width]


def divide_up(size: int, divisor: int) -> int:
    """``size / divisor``, rounded up.

    Of positive numbers alone: ONNX divides integers towards zero, where ``-(-a // b)`` is wrong.
    Of all ways to write it this is the one that a strided convolution's output size has too:
    nested ones then become one division, and the compiler sees that windows of queries and of
    keys are as many.
    """
    return (size - 1) // divisor + 1
