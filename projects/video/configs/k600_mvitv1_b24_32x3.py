"""MViTv1-B-24 32×3 on Kinetics-600, a baseline.

84.1 % top-1 published (Table 11), not measured here.
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

use_mvitv1("B-24", model, input, frames=32, rate=3)
dataset.train = "datasets/kinetics600/train.csv"
train.output_dir = "output/k600_mvitv1_b24_32x3"
