r"""Cascade Mask R-CNN, MViTv2-B, ImageNet-21K pre-training, 36 epochs.

    python train_net.py --num-gpus 8 \
        --config-file configs/cascade/cascade_mask_rcnn_mvitv2_b_in21k_3x.py

Published: box AP 54.9, mask AP 47.4 (released model and paper, Table 5b, B†).
"""

from .cascade_mask_rcnn_mvitv2_b_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_B_in21k.pyth"
