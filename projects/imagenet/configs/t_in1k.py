"""MViTv2-T on ImageNet-1K at 224: 82.3 % top-1 published (Table A.3), not measured here."""

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

use_size("T", model, optimizer)
train.output_dir = "output/t_in1k"
