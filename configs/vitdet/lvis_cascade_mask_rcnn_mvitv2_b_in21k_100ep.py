r"""LVIS v1: Cascade Mask R-CNN, MViTv2-B, ImageNet-21K, ViTDet's recipe, 100 epochs.

    python train_net.py --num-gpus 8 \
        --config-file configs/vitdet/lvis_cascade_mask_rcnn_mvitv2_b_in21k_100ep.py

Published: box AP 46.3, mask AP 42.0 (released model; Detectron2's projects/ViTDet).
Not measured here.
"""

from ..common.lvis import use_lvis
from ..common.schedule import ITERATIONS_LVIS_100EP
from ..common.schedule import lr_multiplier_lvis_100ep as lr_multiplier
from .cascade_mask_rcnn_mvitv2_b_in21k_100ep import dataloader, dataset, model, optimizer, train

use_lvis(model, dataloader)
train.max_iter = ITERATIONS_LVIS_100EP
train.eval_period = 30000
optimizer.lr = 1e-4
