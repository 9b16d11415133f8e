"""The parts of a detector beside the backbone: FPN, Soft-NMS and multi-scale testing."""

from .box_inference import SoftNMSCascadeROIHeads
from .build import add_mvitv2_config, build_mvitv2_backbone, build_mvitv2_fpn_backbone
from .fpn import MViTFPN
from .multi_scale_test import MultiScaleTest
from .resampled_pyramid import ResampledPyramid
from .soft_nms import SoftNMSOutputLayers, soft_nms

__all__ = [
    "MViTFPN",
    "MultiScaleTest",
    "ResampledPyramid",
    "SoftNMSCascadeROIHeads",
    "SoftNMSOutputLayers",
    "add_mvitv2_config",
    "build_mvitv2_backbone",
    "build_mvitv2_fpn_backbone",
    "soft_nms",
]
