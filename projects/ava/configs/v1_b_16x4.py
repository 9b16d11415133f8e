"""MViTv1-B 16×4 on AVA v2.2 (Table A.2), from weights of Kinetics-400 or -600.

python projects/ava/train.py --config-file projects/ava/configs/v1_b_16x4.py \
    train.init_checkpoint=WEIGHTS.pyth
"""

from detectron2.config import LazyCall as L

from mvitv2_det import Variant

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
from .common.mvitv1 import MVITV1

model.update(
    variant=L(Variant)(embed_dim=96, blocks=(1, 2, 11, 2), num_heads=1, drop_path_rate=0.4),
    **MVITV1,
)
