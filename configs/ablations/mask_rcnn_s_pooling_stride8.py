"""Mask R-CNN, MViTv2-S with pooling attention of K/V stride 8, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_s_pooling_stride8.py --num-gpus 8

Published: box AP 50.0 (paper, Table 4b).
"""

from .mask_rcnn_s_pooling import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.adaptive_kv_stride = 8
