"""Mask R-CNN, MViTv2-S with pooling attention in shifted windows (Swin), 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_s_pooling_swin.py --num-gpus 8

Published: box AP 48.9 (paper, Table 4b).
"""

from ..mask_rcnn.mask_rcnn_mvitv2_s_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.update(window_layout="shifted", global_kv_stride_factor=1)
