"""MViTv2-S 16×4 on Kinetics-400 from scratch.

81.0 % top-1 published (Table 10), not measured here.
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

use_size("S", model, input, frames=16, rate=4)
train.output_dir = "output/k400_s_16x4"
