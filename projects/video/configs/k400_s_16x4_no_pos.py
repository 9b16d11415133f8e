"""MViTv2-S 16×4 on Kinetics-400 without positions.

80.1 % top-1 published (Table A.6, row 1), not measured here.
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

model.update(use_rel_pos=False)
train.output_dir = "output/k400_s_16x4_no_pos"
