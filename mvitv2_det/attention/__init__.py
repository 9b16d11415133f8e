"""Pooling attention and its pieces: projection, pooling, windows, positions, softmax product."""

from .multiscale import MultiScaleAttention

__all__ = ["MultiScaleAttention"]
