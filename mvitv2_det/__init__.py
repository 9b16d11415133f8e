"""MViTv2 for object detection, as a Detectron2 backbone extension.

Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection",
CVPR 2022, arXiv 2112.01526.
"""

from .backbone import MViT, ViT
from .config import get_config
from .detection import MViTFPN, ResampledPyramid, add_mvitv2_config
from .errors import UserError
from .variants import VARIANTS, Variant
from .weights import convert_weights, load_weights

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "MViT",
    "MViTFPN",
    "ResampledPyramid",
    "UserError",
    "Variant",
    "ViT",
    "add_mvitv2_config",
    "convert_weights",
    "get_config",
    "load_weights",
]
