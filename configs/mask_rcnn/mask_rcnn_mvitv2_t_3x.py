"""Mask R-CNN, MViTv2-T, ImageNet-1K pre-training, 36 epochs.

    python train_net.py --config-file configs/mask_rcnn/mask_rcnn_mvitv2_t_3x.py --num-gpus 8

Published: box AP 48.3, mask AP 43.8 (released model); 48.2, 43.8 (paper, Table 5a).
"""

from ..common.coco import dataloader, dataset
from ..common.mask_rcnn import model
from ..common.optim import optimizer
from ..common.schedule import ITERATIONS_3X
from ..common.schedule import lr_multiplier_3x as lr_multiplier
from ..common.train import train

train.max_iter = ITERATIONS_3X
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_T_in1k.pyth"
