r"""LVIS v1: Cascade Mask R-CNN, MViTv2-H, ImageNet-21K, ViTDet's recipe, 50 epochs.

    python train_net.py --num-gpus 8 \
        --config-file configs/vitdet/lvis_cascade_mask_rcnn_mvitv2_h_in21k_50ep.py

Published: box AP 49.5, mask AP 44.1 (released model; Detectron2's projects/ViTDet).
Not measured here.
"""

from mvitv2_det import VARIANTS

from ..common.schedule import ITERATIONS_LVIS_50EP
from ..common.schedule import lr_multiplier_lvis_50ep as lr_multiplier
from .lvis_cascade_mask_rcnn_mvitv2_b_in21k_100ep import (
    dataloader,
    dataset,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.update(VARIANTS["H"].backbone_arguments())
model.backbone.bottom_up.use_act_checkpoint = True
train.max_iter = ITERATIONS_LVIS_50EP
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_H_in21k.pyth"
optimizer.lr = 2e-5
