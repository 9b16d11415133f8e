"""MViTv2-B 32×3 on Something-Something-v2 from ImageNet-21K and Kinetics-400.

72.1 % top-1 published (Table 13), not measured here.
"""

from .common.size import use_size
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

use_size("B", model, input, frames=32, rate=3)
model.drop_path_rate = 0.4
train.init_checkpoint = "output/k400_b_32x3_in21k/model_final.pth"
train.output_dir = "output/ssv2_b_32x3_in21k"
