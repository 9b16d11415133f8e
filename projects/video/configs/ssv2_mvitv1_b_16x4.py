"""MViTv1-B 16×4 on Something-Something-v2, a baseline.

64.7 % top-1 published (Table 13), not measured here.
"""

from .common.mvitv1 import use_mvitv1
from .common.something import (
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

use_mvitv1("B", model, input, frames=16, rate=4)
model.drop_path_rate = 0.4
train.init_checkpoint = "output/k400_mvitv1_b_16x4/model_final.pth"
train.output_dir = "output/ssv2_mvitv1_b_16x4"
