"""Mask R-CNN, MViTv2-S without residual and full q pooling, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_s_v1_pooling.py --num-gpus 8

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

model.backbone.bottom_up.update(residual_pooling=False, full_q_pooling=False)
