"""COCO 2017 with large-scale jitter at 1024×1024 (appendix B.3; Ghiasi et al., Copy-Paste)."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from .coco import dataloader, dataset

IMAGE_SIZE = 1024

dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    L(T.ResizeScale)(
        min_scale=0.1, max_scale=2.0, target_height=IMAGE_SIZE, target_width=IMAGE_SIZE
    ),
    L(T.FixedSizeCrop)(crop_size=(IMAGE_SIZE, IMAGE_SIZE)),
]
# Crops cut objects, so their boxes are computed from the cropped masks.
dataloader.train.mapper.recompute_boxes = True
