"""Training MViTv2-S 16×4 on Kinetics-400 from scratch (appendix B.4 of the paper).

What the paper refers to earlier work for is that of PySlowFast: its YAML files of MViTv2 and
``slowfast/config/defaults.py``. Strings of augmentation are timm's.

Values that are null follow from the data and the recipe, and may be given instead. To train on
other videos, set ``dataset.train``.
"""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from timm.loss import SoftTargetCrossEntropy
from torch.optim import AdamW

from mvitv2_det import Recognizer
from mvitv2_det.recognition.description import ClipInput
from mvitv2_det.recognition.recognizer import CLIP_DROP_PATH
from projects.common.optim import parameter_groups
from projects.common.recipe import run_settings, warmed_up_cosine
from projects.common.task import Classification
from projects.video.data import test_loader, train_loader
from projects.video.evaluation import VideoEvaluator

from .....configs.common.train import train
from ....imagenet.configs.common.mixup import mixup

dataset = dict(
    # A folder that holds train/ and val/, a folder of classes, or a list of videos; see
    # projects/video/manifests.py.
    train="datasets/kinetics400/train.csv",
    # Empty: val.csv, or val/ (or valid, test, …) beside the training split; if there is none, a
    # share of each class is held out, always the same.
    val="",
    val_share=0.2,
    # Empty: what the list looks like. Otherwise folders, list, kinetics, something or frames.
    format="",
    # Folder that paths of a list start from; empty: the list's own.
    root="",
    # "skip" leaves lines out whose video is not there.
    missing="error",
    # Names in the order of the outputs, or a text file of one name a line; null takes them from
    # the training split.
    classes=None,
    # What decodes files: av, torchcodec or opencv; empty: av, or opencv without PyAV.
    backend="",
    # Frames in a second of folders of frames, which do not tell.
    fps=30,
    prepare="projects.video.data.prepare_datasets",
)

# 5 clips of the centre for a test, of the short side resized to 256.
input = L(ClipInput)(
    size=224,
    crop=0.875,
    mode="centre",
    interpolation="bilinear",
    mean=(0.45, 0.45, 0.45),
    std=(0.225, 0.225, 0.225),
    frames=16,
    rate=4,
    sampling="stride",
    clips=5,
    crops=1,
)

model = L(Recognizer.video)(
    variant="S",
    frames="${input.frames}",
    num_classes=None,
    class_token=True,
    image_size="${input.size}",
    drop_path_rate=CLIP_DROP_PATH["S"],
    head_dropout=0.5,
    use_act_checkpoint=False,
    recompute_products=False,
)

task = L(Classification)(
    loss=L(SoftTargetCrossEntropy)(),
    mixup=mixup,
    # Clips of a test that go through the network together.
    most_at_once=16,
)

dataloader = OmegaConf.create()
dataloader.train = L(train_loader)(
    dataset="${dataset}",
    input="${input}",
    augmentation=dict(
        auto_augment="rand-m7-n4-mstd0.5-inc1",
        # Inception's crop.
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        # Otherwise the least and largest short side.
        short_side=None,
        hflip=0.5,
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
    ),
    # Augmented clips: 256 videos, each decoded once.
    total_batch_size=512,
    repeats=2,
    num_workers=8,
)
dataloader.test = L(test_loader)(
    dataset="${dataset}",
    input="${input}",
    batch_size=2,
    num_workers="${..train.num_workers}",
    # Frames in random order: what is lost is what was learnt of the order of time.
    shuffle_frames=False,
)
dataloader.evaluator = L(VideoEvaluator)(
    dataset="${dataset}", output_dir="${train.output_dir}/inference"
)

optimizer = L(AdamW)(
    params=L(parameter_groups)(
        # The trainer sets ``model``.
        base_lr="${..lr}",
        weight_decay="${..weight_decay}",
        layer_decay=1.0,
    ),
    # Null: the recipe's, in proportion to the batch.
    lr=None,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)

recipe = dict(
    epochs=200,
    # SOLVER.WARMUP_EPOCHS; the text does not mention it.
    warmup_epochs=30,
    # 1.6e-3 for the paper's 512 augmented clips.
    lr_per_256=8e-4,
    # Epochs from one evaluation and checkpoint to the next.
    eval_epochs=10,
)

# From SOLVER.WARMUP_START_LR and to SOLVER.COSINE_END_LR, 1e-6, where the base rate is 1e-4.
lr_multiplier = warmed_up_cosine(start=0.01, end=0.01)

train.update(
    run_settings("classification/top1"),
    # SOLVER.CLIP_GRAD_L2NORM; the text does not mention it.
    clip_norm=1.0,
    # Videos that do not decode are replaced by others of their class; then the run stops.
    max_unreadable=100,
    amp=dict(enabled=True, dtype="float16"),
    # How an image network becomes one of clips: section 4.3.
    load=dict(classes="all", inflate="centre", tables="as_is"),
)
