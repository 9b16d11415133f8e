"""MViTv2-B 32×3 on Kinetics-600 from scratch.

85.5 % top-1 published (Table 11), not measured here.
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
dataset.train = "datasets/kinetics600/train.csv"
train.output_dir = "output/k600_b_32x3"
