"""MViTv2-S 16×4 on Kinetics-400 with joint relative positions in space and time (Table A.6, row 7).

The authors did not finish this training.
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

model.update(rel_pos_kind="joint")
train.output_dir = "output/k400_s_16x4_joint_pos"
