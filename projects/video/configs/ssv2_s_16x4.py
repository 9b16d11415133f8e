"""MViTv2-S 16×4 on Something-Something-v2 from Kinetics-400.

68.2 % top-1 published (Table 13), not measured here.
"""

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

train.output_dir = "output/ssv2_s_16x4"
