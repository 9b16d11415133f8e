"""Cascade Mask R-CNN: three class-agnostic box heads of growing IoU, SyncBN in all heads.

Each box head has four convolutions and one linear layer, and the RPN head has two convolutions,
as in the public MViTv2 recipe.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
)

from .mask_rcnn import model

# Synchronises the statistics of all processes, weighted by their numbers of regions, which may be
# zero. In a single process, on a GPU or a CPU, it is plain batch norm.
HEAD_NORM = "naiveSyncBN_N"

for single_head_key in ("box_head", "box_predictor", "proposal_matcher"):
    model.roi_heads.pop(single_head_key)

model.roi_heads.update(
    _target_=CascadeROIHeads,
    box_heads=[
        L(FastRCNNConvFCHead)(
            input_shape=L(ShapeSpec)(channels="${.....backbone.out_channels}", height=7, width=7),
            conv_dims=[256, 256, 256, 256],
            fc_dims=[1024],
            conv_norm=HEAD_NORM,
        )
        for _ in range(3)
    ],
    box_predictors=[
        L(FastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels=1024),
            test_score_thresh=0.05,
            box2box_transform=L(Box2BoxTransform)(weights=(xy, xy, wh, wh)),
            cls_agnostic_bbox_reg=True,
            num_classes="${...num_classes}",
        )
        for xy, wh in [(10, 5), (20, 10), (30, 15)]
    ],
    proposal_matchers=[
        L(Matcher)(thresholds=[iou], labels=[0, 1], allow_low_quality_matches=False)
        for iou in [0.5, 0.6, 0.7]
    ],
)
model.roi_heads.mask_head.conv_norm = HEAD_NORM
model.proposal_generator.head.conv_dims = [-1, -1]
