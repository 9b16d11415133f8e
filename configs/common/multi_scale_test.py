"""Multi-scale and flip testing with ``train_net.py --eval-only``; null switches it off.

The MViTv2 paper names no scales but follows Swin (appendix A.1). Swin gives the range that its
HTC++ was trained in, short sides of 400 to 1400 pixels and long sides of at most 1600; these six
span it. Training, and the evaluations during it, see one scale.
"""

from detectron2.config import LazyCall as L

from mvitv2_det.detection.multi_scale_test import MultiScaleTest

# ``model`` is set by the evaluation.
multi_scale_test = L(MultiScaleTest)(
    short_sides=[400, 600, 800, 1000, 1200, 1400], max_side=1600, flip=True
)
