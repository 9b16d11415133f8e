"""MViTv2-S 16×4 on AVA v2.2 (Table A.2), from weights of Kinetics-400.

python projects/ava/train.py --config-file projects/ava/configs/s_16x4.py \
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
