"""MViTv2-S 16×4 on Kinetics-400 with residual, without full Q pooling.

79.7 % top-1 published (Table A.7, row 3), not measured here.
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

model.update(full_q_pooling=False)
train.output_dir = "output/k400_s_16x4_residual"
