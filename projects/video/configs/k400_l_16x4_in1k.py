"""MViTv2-L 16×4 on Kinetics-400 from ImageNet-1K, for longer clips to start from.

The paper publishes no accuracy of it.
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

use_size("L", model, input, frames=16, rate=4)
start_from_images("in1k", model, recipe, train)
train.output_dir = "output/k400_l_16x4_in1k"
