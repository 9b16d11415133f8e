"""What stands between the backbone and Detectron2's detectors."""

from .build import add_mvitv2_config, build_mvitv2_backbone, build_mvitv2_fpn_backbone
from .fpn import MViTFPN

__all__ = [
    "MViTFPN",
    "add_mvitv2_config",
    "build_mvitv2_backbone",
    "build_mvitv2_fpn_backbone",
]
