"""Cascade Mask R-CNN, MViTv2-B, ImageNet-1K pre-training, 36 epochs.

    python train_net.py --config-file configs/cascade/cascade_mask_rcnn_mvitv2_b_3x.py --num-gpus 8

Published: box AP 54.1, mask AP 46.7 (released model); 54.1, 46.8 (paper, Table 5b).
"""

from mvitv2_det import VARIANTS

from .cascade_mask_rcnn_mvitv2_t_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.update(VARIANTS["B"].backbone_arguments())
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_B_in1k.pyth"
