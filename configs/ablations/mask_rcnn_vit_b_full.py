"""Mask R-CNN, plain ViT-B with full attention, 36 epochs.

    python train_net.py --config-file configs/ablations/mask_rcnn_vit_b_full.py --num-gpus 8

Published: box AP 46.6, mask AP 42.3 (paper, Tables 4b and 9).
The paper gives no recipe of its own for ViT-B: drop path is a guess.
"""

from functools import partial

from detectron2.config import LazyCall as L
from torch import nn

from mvitv2_det import ResampledPyramid, ViT

from ..mask_rcnn.mask_rcnn_mvitv2_s_3x import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

vit = L(ViT)(
    drop_path_rate=0.1,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    use_abs_pos=True,
    use_rel_pos=False,
)
model.backbone.bottom_up = L(ResampledPyramid)(bottom_up=vit, norm="naiveSyncBN")
model.backbone.in_features = ["scale2", "scale3", "scale4", "scale5"]
# The paper starts from its own ImageNet-1K training, which is not public.
train.init_checkpoint = ""
