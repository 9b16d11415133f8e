"""Plain ViT-B with pooling attention on ImageNet-1K. Published: 81.9 % top-1 (Table 4a)."""

from .vit_b_full import model

model.update(pooling=True, kv_stride=2)
