"""What Weights & Biases and MLflow are told, by stand-ins; the real ones where they are."""

import importlib.util
import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from conftest import dataset_overrides, tiny_overrides
from detectron2.engine import hooks
from regression import make_trainer

from mvitv2_det import UserError, get_config
from mvitv2_det.commands import main
from mvitv2_det.engine.loggers import check_loggers, open_loggers
from mvitv2_det.engine.run_hooks import LenientWriter

NAME = "mask_rcnn_mvitv2_t_3x"


class Service:
    """Stands for both services: notes calls, and fails where it is told to."""

    def __init__(self, fails=()):
        self.calls, self.fails = [], fails
        self.id, self.info = "run7", SimpleNamespace(run_id="run7")

    def __getattr__(self, name):
        def call(*args, **keywords):
            if name in self.fails:
                raise RuntimeError(f"no connection\nin {name}")
            self.calls.append((name, args, keywords))
            return self

        return call

    def named(self, name):
        return [(args, keywords) for called, args, keywords in self.calls if called == name]

    def as_module(self, name):
        module = ModuleType(name)
        for function in ("init", "start_run", "log_params", "log_metrics", "end_run"):
            setattr(module, function, getattr(self, function))
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        return module


@pytest.fixture
def config(tmp_path):
    cfg = get_config(NAME)
    cfg.train.output_dir = str(tmp_path / "my_run")
    (tmp_path / "my_run").mkdir()
    return cfg


def fit(writers):
    trainer = make_trainer()
    lenient = [LenientWriter(writer, errors=Exception) for writer in writers]
    trainer.register_hooks([hooks.PeriodicWriter(lenient, period=2)])
    trainer.train(0, 6)
    return trainer


LOGS = {"wandb": ("init", "log", "finish"), "mlflow": ("start_run", "log_metrics", "end_run")}


@pytest.mark.parametrize("name", LOGS)
def test_what_a_service_is_told(name, config, monkeypatch):
    service, (start, log, end) = Service(), LOGS[name]
    monkeypatch.setitem(sys.modules, name, service.as_module(name))
    fit(open_loggers([name], config, resumed=False))
    ((_, started),) = service.named(start)
    if name == "wandb":
        assert (started["id"], started["name"], started["resume"]) == (None, "my_run", "allow")
        settings = started["config"]
    else:
        assert started == {"run_id": None, "run_name": "my_run"}
        (((settings,), _),) = service.named("log_params")
    assert float(settings["optimizer/lr"]) == config.optimizer.lr
    assert settings["model/_target_"] == "GeneralizedRCNN"
    logged = service.named(log)
    assert [keywords["step"] for _, keywords in logged] == [1, 3, 5]
    assert all(args[0]["total_loss"] > 0 for args, _ in logged)
    assert len(service.named(end)) == 1
    # A run that goes on is the same run there; one that is not, is not.
    again = Service()
    monkeypatch.setitem(sys.modules, name, again.as_module(name))
    open_loggers([name], config, resumed=True)
    open_loggers([name], config, resumed=False)
    runs = [keywords.get("id", keywords.get("run_id")) for _, keywords in again.named(start)]
    assert runs == ["run7", None]


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_service_that_fails_does_not_end_a_training(name, place, config, monkeypatch, caplog):
    service = Service(fails=[LOGS[name][place]])
    monkeypatch.setitem(sys.modules, name, service.as_module(name))
    with caplog.at_level(logging.WARNING):
        trainer = fit(open_loggers([name], config, resumed=False))
    assert trainer.iter == 6
    assert caplog.text.count("no connection in") == 1 and "goes on without" in caplog.text


def test_a_file_of_runs_that_is_damaged(config, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "mlflow", service.as_module("mlflow"))
    for text in ("{", "[1]", '{"mlflow": 3}'):
        (Path(config.train.output_dir) / "loggers.json").write_text(text)
        open_loggers(["mlflow"], config, resumed=True)
    assert all(keywords["run_id"] is None for _, keywords in service.named("start_run"))


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_loggers([])
    with pytest.raises(UserError, match=r"pip install 'mvitv2_det\[wandb\]'"):
        check_loggers(["wandb"])


@pytest.mark.usefixtures("fresh_loggers")
def test_the_command_logs_a_run(coco_folder, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, "mlflow", service.as_module("mlflow"))
    overrides = [
        *tiny_overrides(get_config(NAME)),
        *dataset_overrides(coco_folder),
        f"train.output_dir={coco_folder}/out",
        "train.eval_period=0",
        "train.loggers=[mlflow]",
    ]
    assert main(["train", "--config-file", NAME, *overrides]) == 0
    (((settings,), _),) = service.named("log_params")
    assert settings["train/max_iter"] == "2"
    logged = {}
    for args, _ in service.named("log_metrics"):
        logged |= args[0]
    assert {"total_loss", "lr", "bbox/AP"} <= logged.keys()
    assert json.loads((coco_folder / "out" / "loggers.json").read_text()) == {"mlflow": "run7"}


def test_the_real_mlflow(config, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    try:
        fit(open_loggers(["mlflow"], config, resumed=False))
        (run,) = mlflow.search_runs(output_format="list")
        losses = mlflow.MlflowClient().get_metric_history(run.info.run_id, "total_loss")
    finally:
        mlflow.set_tracking_uri(None)
    assert float(run.data.params["optimizer/lr"]) == config.optimizer.lr
    assert [loss.step for loss in losses] == [1, 3, 5] and run.info.status == "FINISHED"


def test_the_real_wandb(config, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    fit(open_loggers(["wandb"], config, resumed=False))
    folder = Path(config.train.output_dir)
    run = json.loads((folder / "loggers.json").read_text())["wandb"]
    assert list(folder.glob(f"wandb/offline-run-*/run-{run}.wandb"))
