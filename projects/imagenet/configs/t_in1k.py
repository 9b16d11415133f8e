"""MViTv2-T on ImageNet-1K: 82.3 % top-1 published (Table 2), not measured here."""

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

train.output_dir = "output/t_in1k"
