"""The backbones, MViT and plain ViT: their schedules of blocks, the block, and the whole."""

from .mvit import MViT
from .schedule import BlockSpec, build_plain_schedule, build_schedule
from .trunk import NO_WEIGHT_DECAY
from .vit import ViT

__all__ = [
    "NO_WEIGHT_DECAY",
    "BlockSpec",
    "MViT",
    "ViT",
    "build_plain_schedule",
    "build_schedule",
]
