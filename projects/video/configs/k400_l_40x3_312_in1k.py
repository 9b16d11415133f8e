"""MViTv2-L 40×3 of 312² on Kinetics-400 from ImageNet-1K.

84.4 % top-1 published (Table 14), not measured here.
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
input.update(clips=10, crops=1)
widen_as_released("in1k", model)
start_from_shorter(
    "output/k400_l_16x4_in1k/model_final.pth", task, recipe, optimizer, dataloader, train
)
train.output_dir = "output/k400_l_40x3_312_in1k"
