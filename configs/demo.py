"""Mask R-CNN on a small MViTv2, trained from scratch on handwritten digits: make demo.

python tools/make_digits.py --output datasets/digits
python train_net.py --config-file configs/demo.py
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from mvitv2_det.engine import warmup_fraction

from .common.coco import dataloader, dataset
from .common.mask_rcnn import model
from .common.optim import optimizer
from .common.train import train

IMAGE_SIZE = 128
CHANNELS = 48

dataset.train_json = "datasets/digits/train.json"
dataset.train_images = "datasets/digits/train"
dataset.val_json = "datasets/digits/val.json"
dataset.val_images = "datasets/digits/val"

# No flips, because a mirrored digit is not a digit.
resize = L(T.ResizeShortestEdge)(short_edge_length=IMAGE_SIZE, max_size=2 * IMAGE_SIZE)
dataloader.train.mapper.augmentations = [resize]
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 1
dataloader.test.mapper.augmentations = [resize]
dataloader.test.num_workers = 1
dataloader.test.batch_size = 8

model.backbone.bottom_up.update(
    embed_dim=32,
    depth=7,
    num_heads=1,
    last_block_indexes=(0, 2, 5, 6),
    drop_path_rate=0.0,
    img_size=IMAGE_SIZE,
    adaptive_window_size=16,
    adaptive_kv_stride=4,
)
model.backbone.update(out_channels=CHANNELS, norm="LN", top_block=None)
model.proposal_generator.update(
    in_features=["p2", "p3", "p4", "p5"],
    batch_size_per_image=64,
    pre_nms_topk=(200, 200),
    post_nms_topk=(100, 100),
)
model.proposal_generator.anchor_generator.update(
    sizes=[[16], [32], [64], [96]], strides=[4, 8, 16, 32]
)
model.roi_heads.update(batch_size_per_image=32, positive_fraction=0.25)
for pooler in (model.roi_heads.box_pooler, model.roi_heads.mask_pooler):
    pooler.update(canonical_box_size=128, canonical_level=4, sampling_ratio=1)
model.roi_heads.box_head.fc_dims = [256, 256]
model.roi_heads.box_predictor.input_shape.channels = 256
model.roi_heads.mask_head.conv_dims = [32, 32]

optimizer.lr = 1e-3
optimizer.weight_decay = 0.05

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=L(warmup_fraction)(iterations=50, max_iter="${train.max_iter}"),
    warmup_factor=0.01,
)

train.update(
    output_dir="output/demo",
    max_iter=1250,
    eval_period=250,
    log_period=20,
    checkpointer=dict(period=1250, max_to_keep=1),
    device="cpu",
    amp=dict(enabled=False),
    seed=1,
)
