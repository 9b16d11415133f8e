"""A small MViTv2 from scratch that tells by ten silhouettes who walks, on two CPU cores.

python tools/make_gait_videos.py gait.npz --output datasets/gait
python projects/video/train.py --config-file projects/video/configs/gait.py
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

dataset.train = "datasets/gait"

# All of a clip of ten frames; its 32 rows and 22 columns become a square.
input.update(size=32, crop=1.0, mode="squash", frames=10, rate=1, clips=1)
model.update(
    variant=L(Variant)(embed_dim=64, blocks=(1, 1, 2, 1), num_heads=1, drop_path_rate=0.0),
    class_token=False,
    # The silhouettes stand in the same place of all frames.
    use_abs_pos=True,
    drop_path_rate=0.0,
    head_dropout=0.0,
    initialization="mvit",
    adaptive_kv_stride=4,
    # Each token sees all of the clip.
    patch_kernel=(10, 7, 7),
    patch_stride=(10, 4, 4),
    patch_padding=(0, 3, 3),
)
dataloader.train.update(
    augmentation=dict(short_side=(32, 36), hflip=0.0),
    total_batch_size=32,
    repeats=1,
    num_workers=1,
)
dataloader.test.batch_size = 32
task.mixup.update(mixup_alpha=0.3, cutmix_alpha=0.0)
task.most_at_once = 32

optimizer.lr = 1e-3
recipe.update(epochs=160, warmup_epochs=3, eval_epochs=20)

train.update(output_dir="output/gait", device="cpu", seed=1)
