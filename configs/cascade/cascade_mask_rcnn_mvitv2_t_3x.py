"""Cascade Mask R-CNN, MViTv2-T, ImageNet-1K pre-training, 36 epochs.

    python train_net.py --config-file configs/cascade/cascade_mask_rcnn_mvitv2_t_3x.py --num-gpus 8

Published: box AP 52.2, mask AP 45.0 (released model and paper, Table 5b).
"""

from ..common.cascade_mask_rcnn import model
from ..common.coco import dataloader, dataset
from ..common.optim import optimizer
from ..common.schedule import ITERATIONS_3X
from ..common.schedule import lr_multiplier_3x as lr_multiplier
from ..common.train import train

train.max_iter = ITERATIONS_3X
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_T_in1k.pyth"
