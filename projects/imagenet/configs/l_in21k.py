"""MViTv2-L with a class token on ImageNet-21K and ImageNet-1K at 224."""

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

use_size("L", model, optimizer)
recipe.lr_per_256 = 1e-4
train.output_dir = "output/l_in21k"
