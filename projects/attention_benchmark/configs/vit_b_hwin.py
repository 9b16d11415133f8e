"""Plain ViT-B with Hwin on ImageNet-1K. Published: 82.1 % top-1 (Table 4a)."""

from .vit_b_full import model

model.update(window_size=7, window_layout="hybrid")
