"""MViTv2-S 16×4 on Kinetics-400 with joint relative positions in space.

81.1 % top-1 published (Table A.6, row 6), not measured here.
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

model.update(rel_pos_kind="joint_space")
train.output_dir = "output/k400_s_16x4_joint_space_pos"
