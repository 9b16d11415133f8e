"""MViTv2 for object detection, as a Detectron2 backbone extension.

Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection",
CVPR 2022, arXiv 2112.01526.
"""

from typing import TYPE_CHECKING, Any

from .backbone.mvit import MViT
from .backbone.vit import ViT
from .config import get_config
from .detection import MViTFPN, ResampledPyramid, add_mvitv2_config
from .errors import UserError
from .variants import VARIANTS, Variant
from .weights import convert_weights, load_weights

if TYPE_CHECKING:
    from .predict import Predictor

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "MViT",
    "MViTFPN",
    "Predictor",
    "ResampledPyramid",
    "UserError",
    "Variant",
    "ViT",
    "add_mvitv2_config",
    "convert_weights",
    "get_config",
    "load_weights",
]


def __getattr__(name: str) -> Any:
    """``Predictor`` brings Detectron2's engine with it: imported where it is asked for."""
    if name == "Predictor":
        from .predict import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
