"""Mask R-CNN, MViTv2-S without residual pooling, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_s_no_residual.py --num-gpus 8

Published: box AP 48.5 (paper, Table 7).
"""

from ..mask_rcnn.mask_rcnn_mvitv2_s_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.residual_pooling = False
