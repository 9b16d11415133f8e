"""MViTv2-S 16×4 on Kinetics-400 from ImageNet-21K.

82.6 % top-1 published (Table 14), not measured here.
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
from .common.size import start_from_images, use_size

use_size("S", model, input, frames=16, rate=4)
input.update(clips=10, crops=1)
start_from_images("in21k", model, recipe, train)
train.output_dir = "output/k400_s_16x4_in21k"
