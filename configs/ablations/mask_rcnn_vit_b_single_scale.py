"""Mask R-CNN without FPN: the map of plain ViT-B feeds all heads, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_vit_b_single_scale.py --num-gpus 8

Published: box AP 45.1, mask AP 40.6 (paper, Table 9).
The paper does not give the width of the heads; here they keep that of the map.
"""

from .mask_rcnn_vit_b_full import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = model.backbone.bottom_up.bottom_up
channels = 768
model.proposal_generator.in_features = ["scale4"]
model.proposal_generator.head.update(in_channels=channels, num_anchors=15)
model.proposal_generator.anchor_generator.update(sizes=[[32, 64, 128, 256, 512]], strides=[16])
model.roi_heads.update(box_in_features=["scale4"], mask_in_features=["scale4"])
model.roi_heads.box_head.input_shape.channels = channels
model.roi_heads.mask_head.input_shape.channels = channels
for pooler in (model.roi_heads.box_pooler, model.roi_heads.mask_pooler):
    pooler.scales = [1 / 16]
