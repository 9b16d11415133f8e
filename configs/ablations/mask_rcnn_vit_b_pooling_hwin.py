"""Mask R-CNN, plain ViT-B with pooling attention and Hwin, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_vit_b_pooling_hwin.py --num-gpus 8

Published: box AP 46.9 (paper, Table 4b).
"""

from .mask_rcnn_vit_b_hwin import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.bottom_up.update(pooling=True, kv_stride=2)
