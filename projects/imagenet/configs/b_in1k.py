"""MViTv2-B on ImageNet-1K at 224: 84.4 % top-1 published (Table A.3), not measured here."""

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

use_size("B", model, optimizer)
train.output_dir = "output/b_in1k"
