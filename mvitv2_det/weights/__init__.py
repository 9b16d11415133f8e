"""Weights: from every place where MViTv2 weights live into a model, and back."""

from .convert import TARGETS, Conversion, convert_weights
from .load import load_weights
from .report import LoadReport, Reshaped
from .sources import Checkpoint, read_source

__all__ = [
    "TARGETS",
    "Checkpoint",
    "Conversion",
    "LoadReport",
    "Reshaped",
    "convert_weights",
    "load_weights",
    "read_source",
]
