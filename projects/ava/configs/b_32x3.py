"""MViTv2-B 32×3 on AVA v2.2 (Table A.2), from weights of Kinetics-400, -600 or -700.

python projects/ava/train.py --config-file projects/ava/configs/b_32x3.py \
    train.init_checkpoint=WEIGHTS.pyth
"""

from .common.ava import (
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

input.update(frames=32, rate=3)
model.variant = "B"
