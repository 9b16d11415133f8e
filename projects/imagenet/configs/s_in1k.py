"""MViTv2-S on ImageNet-1K at 224: 83.6 % top-1 published (Table A.3), not measured here."""

from .common.in1k import (
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

use_size("S", model, optimizer)
train.output_dir = "output/s_in1k"
