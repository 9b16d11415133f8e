"""MViTv2-B of ImageNet-21K, fine-tuned on ImageNet-1K at 224.

The paper does not report it. Its text has this recipe for L and H alone.
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

use_size("B", model, optimizer)
optimizer.weight_decay = 0.05
train.init_checkpoint = "timm://mvitv2_base_cls"
train.output_dir = "output/b_in21k_to_1k"
