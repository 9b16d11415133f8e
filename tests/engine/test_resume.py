"""A run that is left and resumed is the run that was never left, bit for bit."""

import json
import os
import signal

import pytest
import torch
from conftest import dataset_overrides, tiny_overrides
from detectron2.engine import HookBase

from mvitv2_det import get_config
from mvitv2_det.commands import main
from mvitv2_det.engine import evaluating, run_hooks
from mvitv2_det.engine.signals import watching_signals

NAME = "mask_rcnn_mvitv2_t_3x"

pytestmark = pytest.mark.usefixtures("fresh_loggers")


def call(folder, name, *arguments):
    overrides = [
        *tiny_overrides(get_config(NAME)),
        *dataset_overrides(folder),
        f"train.output_dir={folder}/{name}",
        "train.log_period=1",
        "train.max_iter=6",
        "train.eval_period=0",
        "train.checkpointer.period=2",
        "train.checkpointer.max_to_keep=2",
        "dataloader.train.num_workers=2",
        "model.backbone.bottom_up.drop_path_rate=0.3",
        "optimizer.lr=1e-2",
        "train.model_ema.enabled=true",
        "train.model_ema.decay=0.5",
    ]
    return main(["train", "--config-file", NAME, *overrides, *arguments])


def final(folder, name):
    """Weights, the optimizer's state and the rest, but the times that steps took."""
    content = torch.load(folder / name / "model_final.pth", weights_only=True)
    logged = content["trainer"]["hooks"]["LoggedWindow"]
    for kind in [kind for kind in logged if kind.endswith("time")]:
        del logged[kind]
    return content


def losses(folder, name):
    lines = map(json.loads, (folder / name / "metrics.json").read_text().splitlines())
    return [(x["iteration"], x["total_loss"], x["lr"]) for x in lines if "total_loss" in x]


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def signal_after(monkeypatch, number, iteration):
    """Sends a signal to this process in a step, once."""

    class Sender(HookBase):
        def before_step(self):
            if self.trainer.iter == iteration:
                os.kill(os.getpid(), number)

    original = run_hooks.LoggedWindow.before_step
    monkeypatch.setattr(
        run_hooks.LoggedWindow,
        "before_step",
        lambda self: (Sender.before_step(self), original(self))[1],
    )


def test_a_signal_saves_the_step_and_the_run_goes_on(coco_folder, capfd, monkeypatch):
    assert call(coco_folder, "whole", "train.seed=5") == 0
    with monkeypatch.context() as patch:
        signal_after(patch, signal.SIGTERM, 2)
        assert call(coco_folder, "left", "train.seed=5") == 75
    out, err = capfd.readouterr()
    assert "stopped by SIGTERM: iteration 2 is saved" in err and "Traceback" not in out + err
    assert not (coco_folder / "left" / "model_final.pth").exists()

    assert call(coco_folder, "left", "train.seed=5", "--resume") == 0
    assert same(final(coco_folder, "whole"), final(coco_folder, "left"))
    assert "model_ema" in final(coco_folder, "left")
    assert losses(coco_folder, "whole") == losses(coco_folder, "left")
    starts = json.loads((coco_folder / "left" / "run.json").read_text())
    assert [(start["seed"], start["start"]) for start in starts] == [(5, 0), (5, 3)]
    assert torch.__version__.startswith(starts[0]["packages"]["torch"])
    kept = sorted(file.name for file in (coco_folder / "left").glob("model_0*.pth"))
    assert kept == ["model_0000003.pth", "model_0000005.pth"]


def test_a_signal_in_an_evaluation_ends_it(coco_folder, capfd, monkeypatch):
    """The run is left in the evaluation after iteration 2, and makes up for it."""
    arguments = ["train.eval_period=3", "train.max_iter=4"]
    with monkeypatch.context() as patch:
        evaluate = evaluating.inference_on_dataset
        patch.setattr(
            evaluating,
            "inference_on_dataset",
            lambda *args: (os.kill(os.getpid(), signal.SIGTERM), evaluate(*args))[1],
        )
        assert call(coco_folder, "left", *arguments) == 75
    assert "stopped by SIGTERM: iteration 2 is saved" in capfd.readouterr().err
    assert call(coco_folder, "left", *arguments, "--resume") == 0
    lines = (coco_folder / "left" / "metrics.json").read_text().splitlines()
    evaluated = [json.loads(line)["iteration"] for line in lines if "bbox/AP" in line]
    assert evaluated == [2, 4]


@pytest.mark.long
def test_a_drawn_seed_is_kept_and_workers_do_not_matter(coco_folder, monkeypatch):
    with monkeypatch.context() as patch:
        signal_after(patch, signal.SIGINT, 1)
        assert call(coco_folder, "left") == 130
    assert call(coco_folder, "left", "--resume") == 0
    seed = final(coco_folder, "left")["run"]["seed"]
    assert call(coco_folder, "whole", f"train.seed={seed}", "dataloader.train.num_workers=0") == 0
    assert same(final(coco_folder, "whole"), final(coco_folder, "left"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_signals_are_noted_and_then_do_what_they_did(number):
    before = signal.getsignal(number)
    with watching_signals() as watch:
        told = []
        watch.tell = lambda: told.append(watch.number)
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert watch.number == number and told == [number]
        if number == signal.SIGINT:
            watch._since -= 2
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before
