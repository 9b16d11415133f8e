"""Mask R-CNN, MViTv2-S that pools queries only where a stage starts, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_s_strided_q.py --num-gpus 8

Published: box AP 49.3 (paper, Table 7).
"""

from ..mask_rcnn.mask_rcnn_mvitv2_s_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.full_q_pooling = False
