"""What stands between the backbone and Detectron2's detectors."""

from .fpn import MViTFPN

__all__ = ["MViTFPN"]
