"""Training on ImageNet-1K at 224, from scratch (appendix B.2 of the paper).

What the paper refers to earlier work for is that of facebookresearch/mvit: its YAML files and
``mvit/config/defaults.py``. Strings of augmentation are timm's, whose code mvit runs.

Values that are null follow from the data and the recipe, and may be given instead. To train on
other images, set ``dataset.train``.
"""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from timm.loss import SoftTargetCrossEntropy
from torch.optim import AdamW

from mvitv2_det import Recognizer
from mvitv2_det.recognition.description import Input
from mvitv2_det.recognition.recognizer import IMAGE_DROP_PATH
from projects.common.optim import parameter_groups
from projects.common.recipe import run_settings, warmed_up_cosine
from projects.common.task import Classification
from projects.imagenet.data import test_loader, train_loader
from projects.imagenet.evaluation import ClassificationEvaluator

from .....configs.common.train import train
from .mixup import mixup

dataset = dict(
    # A folder that holds train/ and val/, a folder of classes, a csv file of lines path,label, or
    # what timm reads: hfds/NAME, wds/NAME, …
    train="datasets/imagenet",
    # Empty: val/ (or valid/, test/, …) beside the training split; if there is none, a share of
    # each class is held out, always the same.
    val="",
    val_share=0.2,
    # For what timm reads: names of the splits, its folder, and keywords of create_dataset.
    train_split="train",
    val_split="validation",
    root="",
    options=dict(),
    # Names in the order of the outputs, or a text file of one name a line; null takes them from
    # the training split.
    classes=None,
    prepare="projects.imagenet.data.prepare_datasets",
)

# The centre crop of the resized image. The paper's other test, of the whole image squashed to a
# square (VAL_CROP_RATIO 0.0 in facebookresearch/mvit), is input.mode=squash input.crop=1.0.
input = L(Input)(size=224, crop=0.875, mode="centre", interpolation="bicubic")

model = L(Recognizer.image)(
    variant="T",
    num_classes=None,
    class_token=False,
    image_size="${input.size}",
    drop_path_rate=IMAGE_DROP_PATH["T"],
    use_act_checkpoint=False,
    recompute_products=False,
)

task = L(Classification)(loss=L(SoftTargetCrossEntropy)(), mixup=mixup, first_outputs=None)

dataloader = OmegaConf.create()
dataloader.train = L(train_loader)(
    dataset="${dataset}",
    input="${input}",
    augmentation=dict(
        # Six operations, where DeiT has two; facebookresearch/mvit, AUG.AA_TYPE.
        auto_augment="rand-m9-n6-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        # AUG.NUM_SAMPLE is 1: no repeated augmentation, unlike DeiT.
        num_aug_repeats=0,
    ),
    total_batch_size=2048,
    num_workers=8,
)
dataloader.test = L(test_loader)(
    dataset="${dataset}", input="${input}", batch_size=64, num_workers="${..train.num_workers}"
)
dataloader.evaluator = L(ClassificationEvaluator)(
    dataset="${dataset}", output_dir="${train.output_dir}/inference"
)

optimizer = L(AdamW)(
    params=L(parameter_groups)(
        # The trainer sets ``model``.
        base_lr="${..lr}",
        weight_decay="${..weight_decay}",
        # facebookresearch/mvit has layer decay, and its recipes do not use it.
        layer_decay=1.0,
    ),
    # Null: the recipe's, in proportion to the batch.
    lr=None,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)

recipe = dict(
    epochs=300,
    warmup_epochs=70,
    # 2e-3 for the paper's 2,048.
    lr_per_256=2.5e-4,
    # Epochs from one evaluation and checkpoint to the next.
    eval_epochs=1,
)

# From SOLVER.WARMUP_START_LR, 1e-8, to SOLVER.COSINE_END_LR, 1e-6, where the base rate is 2.5e-4.
lr_multiplier = warmed_up_cosine(start=4e-5, end=4e-3)

train.update(
    run_settings("classification/top1"),
    # SOLVER.CLIP_GRAD_L2NORM; the text does not mention it.
    clip_norm=1.0,
    # facebookresearch/mvit trains in float32.
    amp=dict(enabled=False, dtype="float16"),
    load=dict(classes="all"),
)
