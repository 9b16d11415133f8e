"""The MViTv2 backbone: its schedule of blocks, the block, and the whole."""

from .mvit import NO_WEIGHT_DECAY, MViT
from .schedule import BlockSpec, build_schedule

__all__ = ["NO_WEIGHT_DECAY", "BlockSpec", "MViT", "build_schedule"]
