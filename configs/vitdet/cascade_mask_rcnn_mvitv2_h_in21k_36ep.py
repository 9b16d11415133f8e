r"""Cascade Mask R-CNN, MViTv2-H, ImageNet-21K pre-training, ViTDet's recipe, 36 epochs.

    python train_net.py --num-gpus 8 \
        --config-file configs/vitdet/cascade_mask_rcnn_mvitv2_h_in21k_36ep.py

Published: box AP 55.9, mask AP 48.3 (released model; Detectron2's projects/ViTDet).
Not measured here.
"""

from mvitv2_det import VARIANTS

from ..common.schedule import ITERATIONS_3X
from ..common.schedule import lr_multiplier_3x as lr_multiplier
from .cascade_mask_rcnn_mvitv2_b_in21k_100ep import dataloader, dataset, model, optimizer, train

model.backbone.bottom_up.update(VARIANTS["H"].backbone_arguments())
model.backbone.bottom_up.use_act_checkpoint = True
train.max_iter = ITERATIONS_3X
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_H_in21k.pyth"
optimizer.lr = 1.6e-4
