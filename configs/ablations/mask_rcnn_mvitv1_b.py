"""Mask R-CNN, MViTv1-B with Hwin, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_mvitv1_b.py --num-gpus 8

Published: box AP 48.8, mask AP 44.2 (paper, Table 5a).
"""

from mvitv2_det.variants import MVITV1_ARGUMENTS

from ..mask_rcnn.mask_rcnn_mvitv2_b_3x import (
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
