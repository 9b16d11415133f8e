"""MViTv2-H of ImageNet-21K, fine-tuned on ImageNet-1K at 224.

88.0 % top-1 published (Table 3), not measured here.
"""

from .common.in21k_to_1k import (
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
optimizer.weight_decay = 0.05
train.init_checkpoint = "timm://mvitv2_huge_cls"
train.output_dir = "output/h_in21k_to_1k"
