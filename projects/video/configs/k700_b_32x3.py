"""MViTv2-B 32×3 on Kinetics-700 from scratch.

76.6 % top-1 published (Table 12), not measured here.
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
dataset.train = "datasets/kinetics700/train.csv"
input.update(clips=3, crops=3)
train.output_dir = "output/k700_b_32x3"
