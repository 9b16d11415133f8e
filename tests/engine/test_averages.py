"""The moving average of the weights: its values, what is saved of it, and what is evaluated."""

import pytest
import torch
from conftest import dataset_overrides, tiny_overrides
from detectron2.engine import HookBase
from regression import Regression, make_trainer
from torch import nn

from mvitv2_det import UserError, get_config, load_weights
from mvitv2_det.commands import main
from mvitv2_det.config import load_config
from mvitv2_det.engine import build_model, runner
from mvitv2_det.engine.averages import Averaging, WeightAverage
from mvitv2_det.engine.checkpoint import RunCheckpointer
from mvitv2_det.visualize.curves import ap_table
from mvitv2_det.visualize.run_files import read_metrics

NAME = "mask_rcnn_mvitv2_t_3x"


class Noting(HookBase):
    def __init__(self):
        self.weights = []

    def after_step(self):
        self.weights.append(self.trainer.model.net[0].weight.detach().double().clone())


def averaged(warmup, model=None, **options):
    """Trains for six steps; the average, and the weights before and after each step."""
    trainer = make_trainer(model, **options)
    average = WeightAverage(trainer.model, decay=0.7, warmup=warmup)
    average.start(trainer.model)
    noting = Noting()
    noting.weights.append(trainer.model.net[0].weight.detach().double().clone())
    trainer.register_hooks([Averaging(average, trainer.model), noting])
    trainer.train(0, 6)
    return average.model.net[0].weight, noting.weights


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_that_of_the_formula(warmup):
    """In float64 by hand; tolerance: float32, six steps."""
    found, weights = averaged(warmup)
    expected = weights[0]
    for step, weight in enumerate(weights[1:]):
        decay = min(0.7, 1 - (1 + step) ** (-2 / 3)) if warmup else 0.7
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found.double(), weights[-1], rtol=1e-3)


def test_a_skipped_step_is_not_averaged():
    class Diverges(Regression):
        step = -1

        def forward(self, batch):
            self.step += 1
            losses = super().forward(batch)
            return {"loss": losses["loss"] * (torch.nan if self.step == 2 else 1)}

    found, weights = averaged(False, Diverges(), max_non_finite=1)
    assert torch.equal(weights[2], weights[3])
    expected = weights[0]
    for step, weight in enumerate(weights[1:]):
        if step != 2:
            expected = 0.7 * expected + 0.3 * weight
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_averaged_buffers_and_names():
    """Statistics of batch norm are averaged, its counter of batches is copied."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = WeightAverage(model, decay=0.5, warmup=False)
    model(torch.tensor([[0.0, 1.0], [4.0, -3.0]]))
    average.update(model, 0)
    state, before = average.state_dict(), torch.ones(2)
    assert state.keys() == model.state_dict().keys() and state["1.num_batches_tracked"] == 1
    torch.testing.assert_close(state["1.running_var"], (before + model[1].running_var) / 2)


def test_a_checkpoint_without_an_average(tmp_path):
    RunCheckpointer(nn.Linear(2, 2), str(tmp_path)).save("model_final")
    average = WeightAverage(nn.Linear(2, 2), decay=0.5, warmup=False)
    with pytest.raises(UserError, match=r"model_final\.pth has no model_ema") as caught:
        RunCheckpointer(nn.Linear(2, 2), str(tmp_path), model_ema=average).resume(
            tmp_path / "model_final.pth"
        )
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("fresh_loggers")
def test_a_run_evaluates_and_saves_both(coco_folder, monkeypatch):
    """The metric of the test is the sum of a weight: each row is of its own weights."""
    seen = []

    def evaluate(cfg, model, *args):
        seen.append(model)
        weight = model.backbone.bottom_up.patch_embed.proj.weight
        return {"bbox": {"AP": float(weight.detach().double().sum())}}

    monkeypatch.setattr(runner, "evaluate", evaluate)
    out = coco_folder / "out"
    overrides = [
        *tiny_overrides(get_config(NAME)),
        *dataset_overrides(coco_folder),
        f"train.output_dir={out}",
        "train.eval_period=1",
        "train.log_period=1",
        "train.model_ema.enabled=true",
        "train.model_ema.decay=0.9",
        "train.best_metric=model_ema/bbox/AP",
        "optimizer.lr=1e-1",
    ]
    assert main(["train", "--config-file", NAME, *overrides]) == 0
    whole = torch.load(out / "model_final.pth", weights_only=True)
    average = torch.load(out / "model_ema.pth", weights_only=True)
    # The file is plain weights, and no checkpoint that a run goes on from.
    assert average.keys() == {"model"}
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    name = "backbone.bottom_up.patch_embed.proj.weight"
    assert torch.equal(average["model"][name], whole["model_ema"][name])
    assert not torch.equal(average["model"][name], whole["model"][name])
    last = read_metrics(out / "metrics.json")[-1]
    assert last["bbox/AP"] == pytest.approx(float(whole["model"][name].double().sum()))
    assert last["model_ema/bbox/AP"] == pytest.approx(float(average["model"][name].double().sum()))
    assert (out / "model_best.pth").is_file() and len(seen) == 4
    assert "box, averaged weights" in ap_table(read_metrics(out / "metrics.json"))

    model = build_model(load_config(str(out / "config.yaml")))
    load_weights(model, str(out / "model_ema.pth"), strict=True)
    assert torch.equal(model.state_dict()[name], average["model"][name])
