"""MViTv2-S 16×4 on Kinetics-400 with neither residual nor full Q pooling.

79.3 % top-1 published (Table A.7, row 1), not measured here.
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

model.update(residual_pooling=False, full_q_pooling=False)
train.output_dir = "output/k400_s_16x4_no_residual"
