"""Plain ViT-B with windows in all blocks on ImageNet-1K. Published: 80.0 % top-1 (Table 4a)."""

from .vit_b_full import model

model.update(window_size=7, window_layout="fixed")
