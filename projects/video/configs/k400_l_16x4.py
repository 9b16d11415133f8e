"""MViTv2-L 16×4 on Kinetics-400 from scratch, for longer clips to start from.

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
from .common.size import use_size, widen_as_released

use_size("L", model, input, frames=16, rate=4)
widen_as_released("scratch", model)
train.output_dir = "output/k400_l_16x4"
