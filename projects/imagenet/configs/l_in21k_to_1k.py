"""MViTv2-L of ImageNet-21K, fine-tuned on ImageNet-1K at 224.

87.5 % top-1 published (Table 3), not measured here.
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

use_size("L", model, optimizer)
optimizer.weight_decay = 0.05
train.init_checkpoint = "timm://mvitv2_large_cls"
train.output_dir = "output/l_in21k_to_1k"
