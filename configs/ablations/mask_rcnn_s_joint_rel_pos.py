"""Mask R-CNN, MViTv2-S with joint relative positions, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_s_joint_rel_pos.py --num-gpus 8

Published: box AP 49.9 (paper, Table 6).
"""

from ..mask_rcnn.mask_rcnn_mvitv2_s_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.rel_pos_kind = "joint"
