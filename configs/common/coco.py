"""COCO 2017 loaders: multi-scale training with random crops, test at 800/1333.

The paper's appendix B.3 mentions only the multi-scale resizing. The public recipe, which is
followed here, also crops half of the images, and draws the short side from eleven sizes.

To train on other data, set ``dataset.train``, or the four paths of json files in COCO's format and
of their images. The classes and their names are read from the data.
"""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from omegaconf import OmegaConf

from mvitv2_det.data import DatasetMapper
from mvitv2_det.evaluation import COCOEvaluator

# Paths of your own data. Empty paths select COCO 2017 in $DETECTRON2_DATASETS.
dataset = dict(
    # A folder or file in any known format, in place of the paths below; and another for validation,
    # unless the first has such a split, or a share of its images is to be that.
    train=None,
    val=None,
    format=None,  # found out by default
    val_share=0.2,
    split_seed=0,
    train_json="",
    train_images="",
    val_json="",
    val_images="",
    # Annotations that are odd, such as boxes partly outside of their images: repair, drop, which
    # leaves out what is wrong as well, or refuse.
    odd_annotations="repair",
)

dataloader = OmegaConf.create()

dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_train"),
    mapper=L(DatasetMapper)(
        is_train=True,
        augmentations=[
            L(T.RandomApply)(
                tfm_or_aug=L(T.AugmentationList)(
                    augs=[
                        L(T.ResizeShortestEdge)(
                            short_edge_length=[400, 500, 600], sample_style="choice"
                        ),
                        L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
                    ]
                ),
                prob=0.5,
            ),
            L(T.ResizeShortestEdge)(
                short_edge_length=[480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
                sample_style="choice",
                max_size=1333,
            ),
            L(T.RandomFlip)(horizontal=True),
        ],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="polygon",
    ),
    total_batch_size=64,
    num_workers=4,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(DatasetMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(COCOEvaluator)(
    dataset_name="${..test.dataset.names}",
    output_dir="${train.output_dir}/inference",
    # pycocotools counts; true takes faster-coco-eval, which gives the same numbers.
    use_fast_impl=False,
    # Otherwise the cached conversion of another data set with the same name could be used.
    allow_cached_coco=False,
)
