"""MViTv2-B 32×3 on Kinetics-400 from scratch.

82.9 % top-1 published (Table 10), not measured here.
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
from .common.size import use_size

use_size("B", model, input, frames=32, rate=3)
train.output_dir = "output/k400_b_32x3"
