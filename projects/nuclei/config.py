"""Mask R-CNN on a small MViTv2, trained from scratch on cell nuclei in microscopy images.

    python train_net.py --config-file projects/nuclei/config.py \
        dataset.train_json=... dataset.train_images=... \
        dataset.val_json=... dataset.val_images=...

README.md beside this file says where the data come from and what to expect.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from ...configs.demo import dataloader, dataset, lr_multiplier, model, optimizer, train

# Twice the side of the 256×256 images: half of the nuclei are smaller than 13 pixels in them.
IMAGE_SIZE = 512

dataset.update(train_json="", train_images="", val_json="", val_images="")

resize = L(T.ResizeShortestEdge)(short_edge_length=IMAGE_SIZE, max_size=2 * IMAGE_SIZE)
# Nuclei have neither an upper nor a left side.
dataloader.train.mapper.augmentations = [
    resize,
    L(T.RandomFlip)(horizontal=True),
    L(T.RandomFlip)(horizontal=False, vertical=True),
]
dataloader.train.total_batch_size = 2
dataloader.test.mapper.augmentations = [resize]
dataloader.test.batch_size = 1

model.backbone.bottom_up.img_size = IMAGE_SIZE
model.proposal_generator.update(
    batch_size_per_image=256,
    pre_nms_topk=(1000, 1000),
    post_nms_topk=(500, 500),
)
model.proposal_generator.anchor_generator.sizes = [[16], [32], [64], [128]]
model.roi_heads.batch_size_per_image = 128
# Up to about 100 nuclei in an image, and some room for doubtful ones.
model.roi_heads.box_predictor.test_topk_per_image = 200

optimizer.lr = 5e-4

train.update(output_dir="output/nuclei", max_iter=900, eval_period=450)
