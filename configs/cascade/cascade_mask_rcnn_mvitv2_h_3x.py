"""Cascade Mask R-CNN, MViTv2-H, ImageNet-21K pre-training, 36 epochs.

    python train_net.py --config-file configs/cascade/cascade_mask_rcnn_mvitv2_h_3x.py --num-gpus 8

No AP is published for H without large-scale jitter, and no ImageNet-1K weights of H: this is the
recipe of the other sizes, from the ImageNet-21K weights.
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

model.backbone.bottom_up.update(VARIANTS["H"].backbone_arguments())
# As in the public recipe: the 80 blocks keep their inputs alone and recompute the rest.
model.backbone.bottom_up.use_act_checkpoint = True
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_H_in21k.pyth"
