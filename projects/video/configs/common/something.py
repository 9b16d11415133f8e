"""Fine-tuning MViTv2-S 16×4 of Kinetics-400 on Something-Something-v2 (appendix B.5 of the paper).

What the text leaves open is that of PySlowFast's YAML files of MViTv2.
"""

import torch
from detectron2.config import LazyCall as L

from projects.common.optim import parameter_groups

from .kinetics import (
    dataloader,
    dataset,
    input,
    lr_multiplier,
    model,
    recipe,
    task,
    train,
)

dataset.update(
    train="datasets/something/something-something-v2-train.json",
    val="datasets/something/something-something-v2-validation.json",
    root="datasets/something/videos",
)
# One frame of each of 16 segments; 3 crops of a short side of 224, as PySlowFast tests.
input.update(sampling="segments", clips=1, crops=3, crop=1.0)
model.drop_path_rate = 0.4
dataloader.train.augmentation.update(
    # Not Inception's crop, though the text says "the same".
    scale=None,
    short_side=(256, 320),
    hflip=0.0,
)
dataloader.train.repeats = 1
optimizer = L(torch.optim.SGD)(
    params=L(parameter_groups)(base_lr="${..lr}", weight_decay="${..weight_decay}"),
    lr=None,
    momentum=0.9,
    nesterov=True,
    weight_decay=1e-4,
)
# 0.02 for 512 clips.
recipe.update(epochs=100, warmup_epochs=3, lr_per_256=0.01)
# From SOLVER.WARMUP_START_LR, 1e-4 where the base rate is 2.5e-3.
lr_multiplier.warmup_factor = 0.04
# No limit of the gradients' norm in PySlowFast's files.
train.clip_norm = None
train.init_checkpoint = "output/k400_s_16x4/model_final.pth"
