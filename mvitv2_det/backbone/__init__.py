"""The MViTv2 backbone: its schedule of blocks, the block, and the whole."""

from .mvit import MViT
from .schedule import BlockSpec, build_schedule

__all__ = ["BlockSpec", "MViT", "build_schedule"]
