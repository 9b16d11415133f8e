"""MViTv2-S on ImageNet-1K. Published: 83.6 % top-1 (Table 4a)."""

from mvitv2_det import get_config
from projects.attention_benchmark.classifier import classifier_of

model = classifier_of(get_config("mask_rcnn_mvitv2_s_3x").model.backbone.bottom_up)
