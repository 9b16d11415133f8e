"""Wrong settings stop a run before anything is built, in one line, and never with status 0."""

import pytest
import torch
from conftest import dataset_overrides, tiny_overrides

from mvitv2_det import UserError, get_config
from mvitv2_det.commands import main
from mvitv2_det.config import apply_overrides
from mvitv2_det.engine import build_model
from mvitv2_det.engine.validate import DEFAULTS, check_processes, check_settings, setting

NAME = "mask_rcnn_mvitv2_t_3x"


@pytest.fixture(scope="module")
def loaded():
    return get_config(NAME)


@pytest.fixture
def cfg(loaded):
    return apply_overrides(loaded.copy(), tiny_overrides(loaded))


WRONG = [
    ("train.max_iter=0", "train.max_iter must be an integer of at least 1, got 0"),
    ("train.max_iter=-5", "got -5"),
    ("train.max_iter=1.5", "got 1.5"),
    ("train.max_iter=null", "got None"),
    ("train.max_iter=100000000000000000000", "train.max_iter must be"),
    ("train.eval_period=-1", "train.eval_period must be an integer of at least 0"),
    ("train.log_period=0", "train.log_period must be an integer of at least 1"),
    ("train.checkpointer.period=0", "train.checkpointer.period must be"),
    ("train.checkpointer.max_to_keep=0", "max_to_keep must be an integer of at least 1 or null"),
    ("train.output_dir=''", "train.output_dir must be a text that is not empty, got ''"),
    ("train.output_dir=null", "no 'train.output_dir'"),
    ("train.device=cpux", "train.device must be cpu or cuda, got 'cpux'"),
    ("train.device=mps", "train.device must be cpu or cuda, got 'mps'"),
    ("train.device=meta", "train.device must be cpu or cuda, got 'meta'"),
    ("train.seed=-2", "train.seed must be an integer from -1"),
    ("train.seed=99999999999", "train.seed must be an integer from -1"),
    ("train.seed=1.5", "train.seed must be"),
    ("train.patience=0", "train.patience must be an integer of at least 1 or null"),
    ("train.patience=3", "train.patience needs train.best_metric"),
    ("train.accumulate=0", "train.accumulate must be"),
    ("train.loggers=[tensorboard]", r"train.loggers must be a list of wandb and mlflow, or empty"),
    ("train.loggers=wandb", "train.loggers must be a list of wandb and mlflow"),
    ("train.compile=yes", "expected true or false"),
    ("train.dry_run=1", "expected true or false"),
    ("train.epochs=0", "train.epochs must be a number above 0 or null, got 0"),
    ("train.eval_epochs=-1", "train.eval_epochs must be a number above 0 or null, got -1"),
    ("train.reference_batch=0", "train.reference_batch must be an integer of at least 1 or null"),
    ("train.clip_norm=0", "train.clip_norm must be a number above 0 or null, got 0"),
    ("train.model_ema.enabled=1", "expected true or false"),
    ("train.model_ema.decay=1", r"train.model_ema.decay must be a number in \[0, 1\), got 1"),
    ("optimizer.params.lr_factor_func.rate=0", "rate must be a number above 0, at most 1, got 0"),
    ("optimizer.params.lr_factor_func.rate=1.5", "rate must be a number above 0, at most 1"),
    ("train.max_non_finite_steps=-1", "train.max_non_finite_steps must be"),
    ("train.max_unreadable=-1", "max_unreadable must be .* got -1"),
    ("train.peer_timeout=0", "train.peer_timeout must be a number above 0"),
    ("train.amp.dtype=float8", "must be float16 or bfloat16, got 'float8'"),
    ("dataloader.train.total_batch_size=0", "total_batch_size must be an integer of at least 1"),
    ("dataloader.train.total_batch_size=-1", "got -1"),
    ("dataloader.train.total_batch_size=2.5", "got 2.5"),
    ("dataloader.train.num_workers=-1", "num_workers must be an integer of at least 0"),
    ("dataloader.test.num_workers=-1", "dataloader.test.num_workers must be"),
    ("+dataloader.test.batch_size=0", "dataloader.test.batch_size must be"),
    ("optimizer.lr=-1", "optimizer.lr must be a number of at least 0, got -1"),
    ("optimizer.lr=inf", "optimizer.lr must be a number of at least 0, got inf"),
    ("optimizer.lr=nan", "optimizer.lr must be"),
    ("optimizer.weight_decay=-0.1", "optimizer.weight_decay must be"),
    ("optimizer.betas=[2,3]", r"optimizer.betas must be two numbers in \[0, 1\), got \[2, 3\]"),
    ("optimizer.betas=[0.9]", "optimizer.betas must be"),
    ("model.roi_heads.num_classes=-1", "num_classes must be an integer of at least 1, got -1"),
]


@pytest.mark.parametrize(("override", "words"), WRONG)
def test_wrong_settings(cfg, override, words):
    with pytest.raises(UserError, match=words) as caught:
        check_settings(apply_overrides(cfg, [override]), training=True)
    assert "\n" not in str(caught.value)


def test_right_settings(cfg):
    check_settings(cfg, training=True)
    right = ["train.max_iter=1", "train.eval_period=0", "optimizer.lr=0", "train.patience=2",
             "train.best_metric=bbox/AP", "train.checkpointer.max_to_keep=null"]  # fmt: skip
    check_settings(apply_overrides(cfg, right), training=True)
    # What only training needs is not asked for otherwise.
    check_settings(apply_overrides(cfg, ["train.max_iter=0"]), training=False)


def test_what_the_data_decide_may_be_null_before(cfg):
    apply_overrides(cfg, ["train.max_iter=null"])
    check_settings(cfg, training=True, complete=False)


@pytest.mark.parametrize("key", ["model", "dataloader", "optimizer", "lr_multiplier", "train"])
def test_a_config_without_a_part(cfg, key):
    del cfg[key]
    with pytest.raises(UserError, match=f"the config has no '{key}"):
        check_settings(cfg, training=True)


def test_defaults_are_those_of_the_common_config(cfg):
    assert setting(cfg, "train.accumulate") == 1
    del cfg.train["seed"]
    assert setting(cfg, "train.seed") == DEFAULTS["train.seed"] == -1


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (dict(num_gpus=-1), "--num-gpus must be at least 1, got -1"),
        (dict(num_machines=0), "--num-machines must be at least 1"),
        (dict(machine_rank=1), "--machine-rank must be from 0 to 0"),
        (dict(num_gpus=3), "a multiple of the 3 processes, got 2"),
    ],
)
def test_wrong_numbers_of_processes(cfg, numbers, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=words):
        check_processes(
            cfg, **dict(num_gpus=1, num_machines=1, machine_rank=0, training=True) | numbers
        )


@pytest.mark.parametrize(
    "override",
    [
        "model.backbone.norm=XYZ",
        "model.roi_heads.box_head.conv_dims=[-1]",
        "model.roi_heads.box_pooler.pooler_type=None",
        "model.proposal_generator.anchor_generator.strides=[]",
        "model.backbone.bottom_up=null",
        "model.input_format='${nothing}'",
    ],
)
def test_a_model_that_cannot_be_built(cfg, override):
    with pytest.raises(UserError, match="the config's model cannot be built") as caught:
        build_model(apply_overrides(cfg, [override]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train.max_iter=-5"],
        ["optimizer.lr=inf"],
        ["--num-gpus", "-1"],
        ["--num-gpus", "3"],
        ["dataloader.train.total_batch_size=0"],
        ["lr_multiplier=null"],
        ["optimizer.betas=[2,3]", "--resume"],
    ],
)
def test_the_command_says_one_line(arguments, cfg, coco_folder, capfd):
    overrides = [*tiny_overrides(cfg), *dataset_overrides(coco_folder)]
    output = f"train.output_dir={coco_folder}/out"
    assert main(["train", "--config-file", NAME, *overrides, output, *arguments]) == 2
    _, err = capfd.readouterr()
    assert "Traceback" not in err and sum("error: " in line for line in err.splitlines()) == 1
    assert not (coco_folder / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.device=cpu"], "is for GPUs, and train.device is cpu: set it to false"),
        (["train.device=cuda", "train.compile=true"], "train.compile and train.cuda_graphs_in"),
        (["train.device=cuda", "train.fsdp=true"], "train.fsdp and train.cuda_graphs_in_training"),
    ],
)
def test_graphs_in_training(cfg, overrides, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    apply_overrides(
        cfg, ["train.cuda_graphs_in_training=true", "train.amp.enabled=false", *overrides]
    )
    with pytest.raises(UserError, match=message):
        check_settings(cfg, training=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.runtime=tensorrt", "must be one of torch, openvino, onnxruntime, got 'tensorrt'"),
        ("train.runtime=[1]", r"train.runtime must be a text that is not empty, got \[1\]"),
        ("train.runtime_precision=bf16", "runtime_precision is of other runtimes than torch"),
        ("+multi_scale_test.flip=true", "runtime=onnxruntime cannot evaluate with multi_scale_tes"),
        ("train.cuda_graphs=true", "runtime=onnxruntime cannot evaluate with train.cuda_graphs"),
    ],
)
def test_runtimes_of_evaluation(cfg, override, message, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # as if all were installed
    others = () if "runtime" in override else ("train.runtime=onnxruntime",)
    apply_overrides(cfg, [*others, override])
    with pytest.raises(UserError, match=message):
        check_settings(cfg, training=False)
