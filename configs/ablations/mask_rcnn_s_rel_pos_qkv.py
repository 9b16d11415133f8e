"""Mask R-CNN, MViTv2-S with relative positions on q, k and v, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_s_rel_pos_qkv.py --num-gpus 8

Published: out of memory on 32 GB GPUs (paper, Table A.4).
"""

from ..mask_rcnn.mask_rcnn_mvitv2_s_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.rel_pos_terms = ["q", "k", "v"]
