"""Mixup, cutmix and label smoothing of facebookresearch/mvit and PySlowFast: ``MIXUP``."""

from detectron2.config import LazyCall as L
from timm.data import Mixup

# Each process's batch is mixed with itself, by one of the two for all of it.
mixup = L(Mixup)(
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    prob=1.0,
    switch_prob=0.5,
    mode="batch",
    label_smoothing=0.1,
    num_classes="${model.num_classes}",
)
