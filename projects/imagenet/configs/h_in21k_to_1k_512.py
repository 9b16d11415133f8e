"""MViTv2-H, fine-tuned at 384 on ImageNet-1K, fine-tuned once more at 512 (appendix B.2).

88.3 % (centre) and 88.8 % (resized) top-1 published (Table 3), not measured here.
"""

from .common.mixup import mixup
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

input.size = 512
optimizer.weight_decay = 1e-8
recipe.epochs = 3
task.mixup = mixup
train.init_checkpoint = "output/h_in21k_to_1k_384/model_final.pth"
train.output_dir = "output/h_in21k_to_1k_512"
