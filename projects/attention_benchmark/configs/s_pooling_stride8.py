"""MViTv2-S with K/V stride 8 on ImageNet-1K. Published: 83.2 % top-1 (Table 4a)."""

from .s_pooling import model

model.adaptive_kv_stride = 8
