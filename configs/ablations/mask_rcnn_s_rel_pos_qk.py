"""Mask R-CNN, MViTv2-S with relative positions on q and k, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_s_rel_pos_qk.py --num-gpus 8

Published: box AP 50.0, mask AP 45.0 (paper, Table A.4).
"""

from ..mask_rcnn.mask_rcnn_mvitv2_s_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.rel_pos_terms = ["q", "k"]
