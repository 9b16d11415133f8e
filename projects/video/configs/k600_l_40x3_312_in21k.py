"""MViTv2-L 40×3 of 312² on Kinetics-600 from ImageNet-21K.

87.5 % top-1 published (Table 11), not measured here.
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
dataset.train = "datasets/kinetics600/train.csv"
input.update(clips=4, crops=3)
widen_as_released("in21k", model)
start_from_shorter(
    "output/k600_l_16x4_in21k/model_final.pth", task, recipe, optimizer, dataloader, train
)
train.output_dir = "output/k600_l_40x3_312_in21k"
