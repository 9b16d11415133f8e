"""MViTv2-L on ImageNet-1K at 224: 85.3 % top-1 published (Table A.3), not measured here."""

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

use_size("L", model, optimizer)
train.output_dir = "output/l_in1k"
