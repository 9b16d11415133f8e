"""Cascade Mask R-CNN, MViTv2-S, ImageNet-1K pre-training, 36 epochs.

    python train_net.py --config-file configs/cascade/cascade_mask_rcnn_mvitv2_s_3x.py --num-gpus 8

Published: box AP 53.2, mask AP 46.0 (released model and paper, Table 5b).
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

model.backbone.bottom_up.update(VARIANTS["S"].backbone_arguments())
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_S_in1k.pyth"
