"""A small MViTv2 from scratch on digits that move over photographs, on two CPU cores in minutes.

python projects/video/quick_start.py
"""

from detectron2.config import LazyCall as L

from mvitv2_det import Variant

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

dataset.train = "datasets/moving_digits"

# A video of 16 frames as every other of them.
input.update(size=32, crop=1.0, frames=8, rate=2, clips=1)
model.update(
    variant=L(Variant)(embed_dim=32, blocks=(1, 1, 2, 1), num_heads=1, drop_path_rate=0.0),
    drop_path_rate=0.0,
    head_dropout=0.0,
    initialization="mvit",
    adaptive_kv_stride=4,
)
# No flips, because what is mirrored goes the other way.
dataloader.train.update(
    augmentation=dict(short_side=(32, 38), hflip=0.0),
    total_batch_size=16,
    repeats=1,
    num_workers=1,
)
dataloader.test.batch_size = 32
task.update(mixup=None, most_at_once=32)

optimizer.lr = 1e-3
recipe.update(epochs=5, warmup_epochs=1, eval_epochs=1)

train.update(output_dir="output/moving_digits", device="cpu", seed=1)
