"""MViTv2-L 40×3 of 312² on Kinetics-400 from ImageNet-21K.

86.1 % top-1 published (Table 10; 85.7 % with 10 clips, Table 14), not measured here.
"""

from .common.kinetics import (
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
from .common.size import start_from_shorter, use_size, widen_as_released

use_size("L", model, input, frames=40, rate=3, side=312)
input.update(clips=5, crops=3)
widen_as_released("in21k", model)
start_from_shorter(
    "output/k400_l_16x4_in21k/model_final.pth", task, recipe, optimizer, dataloader, train
)
train.output_dir = "output/k400_l_40x3_312_in21k"
