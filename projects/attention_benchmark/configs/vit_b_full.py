"""Plain ViT-B with full attention on ImageNet-1K. Published: 82.0 % top-1 (Table 4a)."""

from functools import partial

from detectron2.config import LazyCall as L
from torch import nn

from mvitv2_det import ViT
from projects.attention_benchmark.classifier import Classifier

model = L(Classifier)(
    backbone=L(ViT)(
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_abs_pos=True,
        use_rel_pos=False,
        pretrain_use_cls_token=False,
    )
)
