"""MViTv2-L 40×3 at 312 on AVA v2.2 (Table A.2), from ImageNet-21K and Kinetics-700.

python projects/ava/train.py --config-file projects/ava/configs/l_40x3_312.py \
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

input.update(size=312, frames=40, rate=3)
model.update(variant="L", use_act_checkpoint=True)
# The shares of 224 px; the paper does not say.
dataloader.train.augmentation.short_side = (356, 446)
