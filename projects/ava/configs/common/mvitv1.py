"""Keywords of ``ActionRecognizer.video`` that make it an MViTv1 (Fan et al. 2021)."""

from mvitv2_det.variants import MVITV1_ARGUMENTS

# All blocks of a stage have one K/V stride already.
MVITV1 = {k: v for k, v in MVITV1_ARGUMENTS.items() if k != "global_kv_stride_factor"}
