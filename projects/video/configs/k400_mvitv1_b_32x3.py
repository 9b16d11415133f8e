"""MViTv1-B 32×3 on Kinetics-400, a baseline.

80.2 % top-1 published (Table 10), not measured here.
"""

from .common.kinetics import (
    dataloader,
    dataset,
    input,
    lr_multiplier,
    model,
    optimizer,
    recipe,
    task,
    train,
)
from .common.mvitv1 import use_mvitv1

use_mvitv1("B", model, input, frames=32, rate=3)
train.output_dir = "output/k400_mvitv1_b_32x3"
