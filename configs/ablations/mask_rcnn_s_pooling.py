"""Mask R-CNN, MViTv2-S with pooling attention over whole maps, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_s_pooling.py --num-gpus 8

Published: box AP 50.8 (paper, Table 4b).
K/V strides of the ImageNet network: those of Hwin's global blocks are not doubled.
"""

from ..mask_rcnn.mask_rcnn_mvitv2_s_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.update(adaptive_window_size=0, global_kv_stride_factor=1)
