"""Loading MViTv2 weights of any source into a model, and converting them between formats."""

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
