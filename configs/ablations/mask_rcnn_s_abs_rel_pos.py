"""Mask R-CNN, MViTv2-S with absolute and decomposed relative positions, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_s_abs_rel_pos.py --num-gpus 8

Published: box AP 49.8 (paper, Table 6).
"""

from ..mask_rcnn.mask_rcnn_mvitv2_s_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.use_abs_pos = True
