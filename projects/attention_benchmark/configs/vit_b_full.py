"""Plain ViT-B with full attention on ImageNet-1K. Published: 82.0 % top-1 (Table 4a)."""

from detectron2.config import LazyCall as L

from mvitv2_det import Recognizer

model = L(Recognizer.plain)()
