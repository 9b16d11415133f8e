"""Plain ViT-B with shifted windows (Swin) on ImageNet-1K. Published: 80.4 % top-1 (Table 4a)."""

from .vit_b_full import model

model.update(window_size=7, window_layout="shifted")
