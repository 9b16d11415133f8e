"""MViTv2-H of ImageNet-21K, fine-tuned on ImageNet-1K at 384.

88.3 % (centre) and 88.6 % (resized) top-1 published (Table 3), not measured here.
"""

from .h_in21k_to_1k import (
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

input.size = 384
train.output_dir = "output/h_in21k_to_1k_384"
