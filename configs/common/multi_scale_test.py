"""Multi-scale and flip testing with ``train_net.py --eval-only``; null switches it off.

The MViTv2 paper does not list its scales; it follows Swin (appendix A.1). Swin's HTC++ was trained
with short sides of 400 to 1400 pixels and long sides of at most 1600, and the six scales here span
that range. Training, and the evaluations during training, use one scale.
"""

from detectron2.config import LazyCall as L

from mvitv2_det.detection.multi_scale_test import MultiScaleTest

# The evaluation sets ``model``.
multi_scale_test = L(MultiScaleTest)(
    short_sides=[400, 600, 800, 1000, 1200, 1400], max_side=1600, flip=True
)
