"""FSDP2 trains what DDP trains, and its checkpoints are those of any run."""

import json
import os
import signal

import pytest
import torch
from conftest import write_coco
from processes import detection_config, run
from torch.distributed.fsdp import FSDPModule

from mvitv2_det import UserError
from mvitv2_det.config import apply_overrides
from mvitv2_det.engine import build_model, run_hooks, train
from mvitv2_det.engine.signals import Preempted
from mvitv2_det.engine.validate import check_settings


def _config(folder, name, *overrides):
    return detection_config(
        folder,
        f"train.output_dir={folder}/{name}",
        "train.seed=3",
        "train.max_iter=4",
        "train.eval_period=2",
        "train.best_metric=bbox/AP",
        "optimizer.lr=1e-2",
        "model.backbone.bottom_up.drop_path_rate=0.2",
        *overrides,
    )


def _train(folder, name, *overrides):
    model = train(_config(folder, name, *overrides), resume=True)
    assert isinstance(model, FSDPModule) == ("train.fsdp=true" in overrides)
    if isinstance(model, FSDPModule):
        parameter = model.backbone.bottom_up.blocks[0].attn.qkv.weight
        assert len(parameter.to_local()) * 2 == len(parameter)


def _train_both(folder, *options):
    _train(folder, "ddp", *options)
    _train(folder, "fsdp", "train.fsdp=true", *options)


def _train_in_parts(folder):
    options = ["train.accumulate=2", "dataloader.train.total_batch_size=4"]
    _train(folder, "ddp", *options)
    options += ["train.fsdp=true", "model.backbone.bottom_up.recompute_products=true"]
    _train(folder, "recomputed", *options)
    options += ["model.backbone.bottom_up.use_act_checkpoint=true"]
    _train(folder, "fsdp", *options)


def _leave_and_resume(folder):
    _train_both(folder)
    before = run_hooks.LoggedWindow.before_step

    def send(self):
        if self.trainer.iter == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        before(self)

    for left, went_on in (("fsdp", "ddp"), ("ddp", "fsdp"), ("fsdp", "fsdp")):
        name, fsdp = f"{left}_then_{went_on}", ["train.fsdp=true"]
        run_hooks.LoggedWindow.before_step = send
        with pytest.raises(Preempted):
            _train(folder, name, *(fsdp if left == "fsdp" else []))
        run_hooks.LoggedWindow.before_step = before
        _train(folder, name, *(fsdp if went_on == "fsdp" else []))


def _content(folder, name, file="model_final.pth"):
    return torch.load(folder / name / file, weights_only=True)


def _losses(folder, name):
    lines = map(json.loads, (folder / name / "metrics.json").read_text().splitlines())
    return [line["total_loss"] for line in lines if "total_loss" in line]


def _assert_close(one, other, **tolerance):
    for name, weight in one["model"].items():
        torch.testing.assert_close(other["model"][name], weight, **tolerance)
    states = [content["trainer"]["optimizer"]["state"] for content in (one, other)]
    assert states[0].keys() == states[1].keys()
    for number, state in states[0].items():
        torch.testing.assert_close(states[1][number]["exp_avg"], state["exp_avg"], **tolerance)


@pytest.fixture
def folder(tmp_path):
    """The three validation images cannot be shared evenly."""
    write_coco(tmp_path, "train", 6)
    write_coco(tmp_path, "val", 3)
    return tmp_path


# Tolerance: float32, two or four steps of AdamW, sums in another order; losses of about 2.
WEIGHTS, LOSSES = dict(rtol=1e-3, atol=1e-4), 1e-4


@pytest.mark.long
def test_two_processes_with_parts_of_the_model_do_what_two_with_all_do(folder):
    run(_train_both, folder, folder, "train.max_iter=2", "train.eval_period=0")
    ddp, fsdp = _content(folder, "ddp"), _content(folder, "fsdp")
    assert len(set(_losses(folder, "ddp"))) == 2
    assert _losses(folder, "fsdp") == pytest.approx(_losses(folder, "ddp"), rel=LOSSES)
    _assert_close(ddp, fsdp, **WEIGHTS)
    # A checkpoint, also the best, is that of any model.
    best = _content(folder, "fsdp", "model_best.pth")
    assert {type(tensor) for tensor in best["model"].values()} == {torch.Tensor}
    build_model(_config(folder, "none")).load_state_dict(best["model"])


@pytest.mark.long
def test_parts_of_a_batch_and_recomputed_activations(folder):
    run(_train_in_parts, folder, folder)
    assert _losses(folder, "fsdp") == pytest.approx(_losses(folder, "ddp"), rel=LOSSES)
    _assert_close(_content(folder, "ddp"), _content(folder, "fsdp"), **WEIGHTS)
    _assert_close(_content(folder, "fsdp"), _content(folder, "recomputed"), rtol=0, atol=0)


@pytest.mark.long
def test_what_is_left_goes_on_sharded_or_not(folder):
    """Left after the second step. FSDP2 goes on as if it had not been, bit for bit."""
    run(_leave_and_resume, folder, folder)
    ddp, fsdp = _content(folder, "ddp"), _content(folder, "fsdp")
    _assert_close(fsdp, _content(folder, "fsdp_then_fsdp"), rtol=0, atol=0)
    assert _losses(folder, "fsdp_then_fsdp") == _losses(folder, "fsdp")
    for other in ("fsdp_then_ddp", "ddp_then_fsdp"):
        _assert_close(ddp, _content(folder, other), **WEIGHTS)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.model_ema.enabled=true", "do not go together"),
        ("train.compile=true", "do not go together"),
        ("train.amp.enabled=true", "train.fsdp needs train.amp.dtype=bfloat16"),
    ],
)
def test_what_does_not_go_together(override, words, coco_folder):
    cfg = _config(coco_folder, "none", "train.fsdp=true")
    apply_overrides(cfg, ["train.amp.enabled=false", override])
    with pytest.raises(UserError, match=words):
        check_settings(cfg, training=True)
    apply_overrides(cfg, ["train.fsdp=false"])
    check_settings(cfg, training=True)
