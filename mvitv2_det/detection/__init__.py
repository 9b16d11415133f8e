"""What stands between the backbone and Detectron2's detectors."""

from .build import add_mvitv2_config, build_mvitv2_backbone, build_mvitv2_fpn_backbone
from .fpn import MViTFPN
from .resampled_pyramid import ResampledPyramid

__all__ = [
    "MViTFPN",
    "ResampledPyramid",
    "add_mvitv2_config",
    "build_mvitv2_backbone",
    "build_mvitv2_fpn_backbone",
]
