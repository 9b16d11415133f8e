"""Mask R-CNN without FPN: the last map of MViTv2-S feeds all heads, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_s_single_scale.py --num-gpus 8

Published: box AP 47.0, mask AP 41.4 (paper, Table 9).
"""

from ..mask_rcnn.mask_rcnn_mvitv2_s_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone = model.backbone.bottom_up
model.backbone.out_features = ["scale5"]
channels = 8 * model.backbone.embed_dim
model.proposal_generator.in_features = ["scale5"]
model.proposal_generator.head.update(in_channels=channels, num_anchors=15)
model.proposal_generator.anchor_generator.update(sizes=[[32, 64, 128, 256, 512]], strides=[32])
model.roi_heads.update(box_in_features=["scale5"], mask_in_features=["scale5"])
model.roi_heads.box_head.input_shape.channels = channels
model.roi_heads.mask_head.input_shape.channels = channels
for pooler in (model.roi_heads.box_pooler, model.roi_heads.mask_pooler):
    pooler.scales = [1 / 32]
