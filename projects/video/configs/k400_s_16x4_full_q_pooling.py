"""MViTv2-S 16×4 on Kinetics-400 with full Q pooling, without residual.

79.7 % top-1 published (Table A.7, row 2), not measured here.
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

model.update(residual_pooling=False)
train.output_dir = "output/k400_s_16x4_full_q_pooling"
