"""Mask R-CNN, plain ViT-B with pooling attention, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_vit_b_pooling.py --num-gpus 8

Published: box AP 47.2 (paper, Table 4b).
"""

from .mask_rcnn_vit_b_full import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.bottom_up.update(pooling=True, kv_stride=2)
