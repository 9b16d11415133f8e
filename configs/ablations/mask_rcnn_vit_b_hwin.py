"""Mask R-CNN, plain ViT-B with Hwin, four blocks of twelve global, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_vit_b_hwin.py --num-gpus 8

Published: box AP 46.1 (paper, Table 4b).
The paper does not give the window; 14 tokens are those of the pre-training images.
"""

from .mask_rcnn_vit_b_full import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.bottom_up.update(window_size=14, window_layout="hybrid")
