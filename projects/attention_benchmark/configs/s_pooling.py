"""MViTv2-S on ImageNet-1K. Published: 83.6 % top-1 (Table 4a)."""

from detectron2.config import LazyCall as L

from mvitv2_det import Recognizer

model = L(Recognizer.image)(variant="S")
