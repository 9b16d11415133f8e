"""A small MViTv2 trained from scratch on handwritten digits, on two CPU cores in minutes.

python tools/make_digit_images.py --output datasets/digit_images
python projects/imagenet/train.py --config-file projects/imagenet/configs/digits.py
"""

from detectron2.config import LazyCall as L

from mvitv2_det import Variant

from .common.in1k import (
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

dataset.train = "datasets/digit_images"

# A crop of the centre would cut digits.
input.update(size=32, crop=1.0, mode="squash", interpolation="bicubic")
model.update(
    variant=L(Variant)(embed_dim=32, blocks=(1, 1, 2, 1), num_heads=1, drop_path_rate=0.0),
    drop_path_rate=0.0,
)
# No flips, because a mirrored digit is not a digit.
dataloader.train.update(
    augmentation=dict(
        scale=(0.7, 1.0),
        ratio=(0.8, 1.25),
        hflip=0.0,
        color_jitter=None,
        interpolation="bicubic",
    ),
    total_batch_size=64,
    num_workers=1,
)
dataloader.test.batch_size = 128
# The 8×8 pixels of a digit are too few to cut.
task.mixup.update(mixup_alpha=0.2, cutmix_alpha=0.0, prob=0.5)

optimizer.lr = 2e-3
recipe.update(epochs=21, warmup_epochs=3, eval_epochs=7)

train.update(output_dir="output/digit_images", device="cpu", seed=1)
