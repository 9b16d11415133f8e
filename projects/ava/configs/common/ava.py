"""Training MViTv2-S 16×4 on AVA v2.2 (appendix B.6 of the paper).

What the paper refers to earlier work for is that of PySlowFast: ``slowfast/config/defaults.py`` and
its YAML files of AVA. It has released no config or weights of an MViT on AVA.

Values that are null follow from the data and the recipe, and may be given instead.
"""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from torch.optim import SGD

from mvitv2_det.recognition.description import ClipInput
from projects.ava.data import test_loader, train_loader
from projects.ava.evaluation import ActionEvaluator
from projects.ava.task import Actions
from projects.common.optim import parameter_groups
from projects.common.recipe import run_settings, warmed_up_cosine

from .....configs.common.train import train

_FOLDER = "datasets/ava/annotations"
_PERSONS = f"{_FOLDER}/person_box_67091280_iou90/ava_detection"

dataset = dict(
    # A video file or a folder of frames for each video, of its name.
    videos="datasets/ava/frames",
    # The second at which videos start: AVA's segments of 15 minutes do so at 900. 0 of whole files.
    start=900,
    # Frames in a second of folders of frames, which do not tell.
    fps=30,
    # What decodes files: av, torchcodec or opencv; empty: av, or opencv without PyAV.
    backend="",
    # Truths: csv of video,second,x1,y1,x2,y2,action,person.
    train=f"{_FOLDER}/ava_train_v2.2.csv",
    val=f"{_FOLDER}/ava_val_v2.2.csv",
    # Persons that a detector has found: csv or mmaction2's pickle. Empty: those of the truth.
    train_persons=f"{_PERSONS}_train_boxes_and_labels_include_negative_v2.2.csv",
    val_persons=f"{_PERSONS}_val_boxes_and_labels.csv",
    # Of persons of a detector, AVA.DETECTION_SCORE_THRESH.
    least_score=0.8,
    # Key frames to leave out: csv of video,second; empty: none.
    train_excluded=f"{_FOLDER}/ava_train_excluded_timestamps_v2.2.csv",
    val_excluded=f"{_FOLDER}/ava_val_excluded_timestamps_v2.2.csv",
    # Evaluate seconds that this number divides; PySlowFast has 4 while it trains.
    val_every=1,
    # Names of the actions that are evaluated.
    actions=f"{_FOLDER}/ava_action_list_v2.2_for_activitynet_2019.pbtxt",
    prepare="projects.ava.data.prepare_datasets",
)

# The short side is resized to ``size``; dataloader.test.view says what of it is seen.
input = L(ClipInput)(
    size=224,
    crop=1.0,
    mode="centre",
    interpolation="bilinear",
    mean=(0.45, 0.45, 0.45),
    std=(0.225, 0.225, 0.225),
    frames=16,
    rate=4,
    sampling="stride",
    clips=1,
    crops=1,
)

# By its name: a saved config would name the method after Recognizer, which defines it.
model = L("mvitv2_det.recognition.actions.ActionRecognizer.video")(
    variant="S",
    frames="${input.frames}",
    # AVA has 80 actions, of which the list above names 60. Null: up to the last that is named.
    num_classes=80,
    class_token=True,
    image_size="${input.size}",
    drop_path_rate=0.4,
    head_dropout=0.5,
    use_act_checkpoint=False,
    recompute_products=False,
)

task = L(Actions)()

dataloader = OmegaConf.create()
dataloader.train = L(train_loader)(
    dataset="${dataset}",
    input="${input}",
    augmentation=dict(short_side=(256, 320), hflip=0.5),
    total_batch_size=512,
    num_workers=8,
)
dataloader.test = L(test_loader)(
    dataset="${dataset}",
    input="${input}",
    # "center": the square in the centre; "full": all of the frame, at any size (Table A.2).
    view="center",
    batch_size=8,
    num_workers="${..train.num_workers}",
)
dataloader.evaluator = L(ActionEvaluator)(
    dataset="${dataset}", output_dir="${train.output_dir}/inference"
)

optimizer = L(SGD)(
    params=L(parameter_groups)(
        # The trainer sets ``model``.
        base_lr="${..lr}",
        weight_decay="${..weight_decay}",
    ),
    # Null: the recipe's, in proportion to the batch.
    lr=None,
    momentum=0.9,
    nesterov=True,
    weight_decay=1e-8,
)

recipe = dict(
    epochs=30,
    warmup_epochs=5,
    # 0.6 for the paper's 512 clips.
    lr_per_256=0.3,
    # Epochs from one evaluation and checkpoint to the next.
    eval_epochs=5,
)

# From SOLVER.WARMUP_START_LR of PySlowFast's configs of AVA, 1.25e-4.
lr_multiplier = warmed_up_cosine(start=2e-4, end=0.0)

train.update(
    run_settings("actions/mAP"),
    # Clips that do not decode are replaced by those of other key frames; then the run stops.
    max_unreadable=100,
    amp=dict(enabled=True, dtype="float16"),
    # How an image network becomes one of clips: section 4.3.
    load=dict(classes="all", inflate="centre", tables="as_is"),
)
