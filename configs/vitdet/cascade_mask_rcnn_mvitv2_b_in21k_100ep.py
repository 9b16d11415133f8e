r"""Cascade Mask R-CNN, MViTv2-B, ImageNet-21K pre-training, ViTDet's recipe, 100 epochs.

    python train_net.py --num-gpus 8 \
        --config-file configs/vitdet/cascade_mask_rcnn_mvitv2_b_in21k_100ep.py

Published: box AP 55.6, mask AP 48.1 (released model; Detectron2's projects/ViTDet).
Not measured here.
"""

from mvitv2_det import VARIANTS

from ..common.schedule import ITERATIONS_100EP
from ..common.schedule import lr_multiplier_100ep as lr_multiplier
from ..common.train import train
from ..common.vitdet import dataloader, dataset, model, optimizer

model.backbone.bottom_up.update(VARIANTS["B"].backbone_arguments())
train.max_iter = ITERATIONS_100EP
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_B_in21k.pyth"
