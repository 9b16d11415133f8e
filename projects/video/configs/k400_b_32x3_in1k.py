"""MViTv2-B 32×3 on Kinetics-400 from ImageNet-1K.

83.3 % top-1 published (Table 14), not measured here.
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

use_size("B", model, input, frames=32, rate=3)
input.update(clips=10, crops=1)
start_from_images("in1k", model, recipe, train)
train.output_dir = "output/k400_b_32x3_in1k"
