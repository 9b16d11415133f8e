"""Sizes that may be symbols: what ``torch.export`` and ``torch.jit.trace`` put in their place.

A symbol that is compared becomes the one number that it stood for, and what is exported then
takes maps of one size alone.
"""


def known(*sizes: int) -> bool:
    """Whether all sizes are numbers."""
    return all(isinstance(size, int) for size in sizes)


def divide_up(size: int, divisor: int) -> int:
    """``size / divisor``, rounded up.

    Of positive numbers alone: ONNX divides integers towards zero, where ``-(-a // b)`` is wrong.
    """
    return (size + divisor - 1) // divisor
