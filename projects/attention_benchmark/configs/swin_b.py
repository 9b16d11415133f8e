"""torchvision's Swin-B on ImageNet-1K. Published: 83.3 % top-1 (Table 8)."""

from detectron2.config import LazyCall as L
from torchvision.models import swin_b

model = L(swin_b)()
