"""Mask R-CNN, MViTv1-S with Hwin, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_mvitv1_s.py --num-gpus 8

Published: box AP 47.6, mask AP 43.4 (paper, Table 5a).
"""

from mvitv2_det.variants import MVITV1_ARGUMENTS

from ..mask_rcnn.mask_rcnn_mvitv2_s_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.update(MVITV1_ARGUMENTS)
# No ImageNet weights of MViTv1 at this size are public.
train.init_checkpoint = ""
