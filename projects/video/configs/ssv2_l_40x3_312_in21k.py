"""MViTv2-L 40×3 of 312² on Something-Something-v2 from ImageNet-21K and Kinetics-400.

73.3 % top-1 published (Table 13), not measured here.
"""

from .common.size import use_size
from .common.something import (
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

use_size("L", model, input, frames=40, rate=3, side=312)
# PySlowFast's MIXUP.PROB is 0, and its labels are smoothed all the same.
task.mixup.prob = 0.0
dataloader.train.augmentation.short_side = (356, 446)
recipe.epochs = 40
train.init_checkpoint = "output/k400_l_40x3_312_in21k/model_final.pth"
train.output_dir = "output/ssv2_l_40x3_312_in21k"
