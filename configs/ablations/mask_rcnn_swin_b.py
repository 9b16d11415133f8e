"""Mask R-CNN, Detectron2's Swin-B, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_swin_b.py --num-gpus 8

Published: box AP 48.5 (paper, Table 8).
The paper says that Swin is trained with the same recipe; the drop-path rate is a guess.
"""

from detectron2.config import LazyCall as L
from detectron2.modeling import SwinTransformer

from ..mask_rcnn.mask_rcnn_mvitv2_s_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = L(SwinTransformer)(
    embed_dim=128,
    depths=(2, 2, 18, 2),
    num_heads=(4, 8, 16, 32),
    drop_path_rate=0.3,
)
model.backbone.in_features = ["p0", "p1", "p2", "p3"]
optimizer.params.overrides["relative_position_bias_table"] = dict(weight_decay=0.0)
# Swin's published weights have other names than Detectron2's module.
train.init_checkpoint = ""
