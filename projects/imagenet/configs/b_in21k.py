"""MViTv2-B with a class token on ImageNet-21K and ImageNet-1K at 224."""

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

use_size("B", model, optimizer)
optimizer.weight_decay = 0.01
recipe.lr_per_256 = 6.75e-5
train.output_dir = "output/b_in21k"
