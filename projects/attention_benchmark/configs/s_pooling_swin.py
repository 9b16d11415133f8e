"""MViTv2-S with shifted windows on ImageNet-1K. Published: 82.8 % top-1 (Table 4a)."""

from .s_pooling_hwin import model

model.window_layout = "shifted"
