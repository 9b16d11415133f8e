"""MViTv2-B, trained on ImageNet-1K at 224, fine-tuned at 384.

85.2 % (centre) and 85.6 % (resized) top-1 published (Table
A.3), not measured here.
"""

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

use_size("B", model, optimizer)
input.size = 384
train.init_checkpoint = "timm://mvitv2_base"
recipe.lr_per_256 = 4e-5
train.output_dir = "output/b_in1k_384"
