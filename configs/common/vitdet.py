"""What ViTDet (Li et al. 2022, arXiv:2203.16527) changes in the recipe of Cascade Mask R-CNN.

LN in the FPN and in all heads; large-scale jitter without padding, on images that the model pads to
squares of 1024 pixels, also in tests; and of the positions the absolute ones alone without weight
decay. Followed are Detectron2's configs, projects/ViTDet. A larger image is padded further:
Detectron2 would crop it.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from .cascade_mask_rcnn import model
from .coco_lsj import IMAGE_SIZE, dataloader, dataset
from .optim import optimizer

NORM = "LN"

model.backbone.norm = NORM
model.backbone.square_pad = IMAGE_SIZE
for head in (*model.roi_heads.box_heads, model.roi_heads.mask_head):
    head.conv_norm = NORM

dataloader.train.mapper.augmentations[2].pad = False
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=IMAGE_SIZE, max_size=IMAGE_SIZE)
]

optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
optimizer.lr = 8e-5
