"""MViTv1 for clips, a baseline of the paper: what differs from MViTv2."""

from detectron2.config import LazyCall as L
from omegaconf import DictConfig

from mvitv2_det import Variant
from mvitv2_det.variants import MVITV1_ARGUMENTS

# Blocks of the stages, and stochastic depth on Kinetics: the MViTv1 paper's.
SIZES = {"B": ((1, 2, 11, 2), 0.2), "B-24": ((2, 3, 16, 3), 0.3)}


def use_mvitv1(size: str, model: DictConfig, input: DictConfig, *, frames: int, rate: int) -> None:
    """Makes a config one of MViTv1, in place; MViTv2 has taken its recipe over.

    Args:
        size: ``B`` or ``B-24``.
        model, input: the config's nodes.
        frames, rate: T × τ.
    """
    options = {k: v for k, v in MVITV1_ARGUMENTS.items() if k != "global_kv_stride_factor"}
    blocks, drop_path_rate = SIZES[size]
    variant = L(Variant)(embed_dim=96, blocks=blocks, num_heads=1, drop_path_rate=drop_path_rate)
    model.update(variant=variant, drop_path_rate=drop_path_rate, **options)
    input.update(frames=frames, rate=rate)
