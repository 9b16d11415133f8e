"""MViTv2-H with a class token on ImageNet-21K and ImageNet-1K at 224."""

from .common.in21k import (
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

use_size("H", model, optimizer)
recipe.lr_per_256 = 1e-4
recipe.update(epochs=60, warmup_epochs=14)
train.output_dir = "output/h_in21k"
