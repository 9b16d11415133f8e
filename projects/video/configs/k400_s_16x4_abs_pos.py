"""MViTv2-S 16×4 on Kinetics-400 with absolute positions.

80.4 % top-1 published (Table A.6, row 2), not measured here.
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

model.update(use_rel_pos=False, use_abs_pos=True)
train.output_dir = "output/k400_s_16x4_abs_pos"
