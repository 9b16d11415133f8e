"""MViTv2-S, trained on ImageNet-1K at 224, fine-tuned at 384; the paper does not report it."""

from .common.fine_tune import (
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
input.size = 384
train.init_checkpoint = "timm://mvitv2_small"
recipe.lr_per_256 = 4e-5
train.output_dir = "output/s_in1k_384"
