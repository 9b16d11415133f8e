"""MViTv2-S 16×4 on Kinetics-400 with relative positions in space alone.

80.6 % top-1 published (Table A.6, row 4), not measured here.
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

model.update(rel_pos_kind="space")
train.output_dir = "output/k400_s_16x4_space_pos"
