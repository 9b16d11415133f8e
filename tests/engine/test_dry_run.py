"""A dry run says what a run needs, and leaves nothing that a later start would stumble over."""

import pytest
import torch
from conftest import dataset_overrides, tiny_overrides
from detectron2.evaluation import DatasetEvaluator

from mvitv2_det import UserError, get_config
from mvitv2_det.commands import main
from mvitv2_det.config import apply_overrides
from mvitv2_det.engine import dry_run
from mvitv2_det.engine.checkpoint import check_fresh
from mvitv2_det.engine.dry_run import FirstBatches, Needs, StepTimes, _needs, shortened
from mvitv2_det.engine.trainer import Trainer

NAME = "mask_rcnn_mvitv2_t_3x"

pytestmark = pytest.mark.usefixtures("fresh_loggers")


def call(folder, *overrides):
    return main(
        [
            *("train", "--config-file", NAME),
            *tiny_overrides(get_config(NAME)),
            *dataset_overrides(folder),
            f"train.output_dir={folder}/out",
            "train.dry_run=true",
            "train.max_iter=1000",
            "train.eval_period=400",
            "train.model_ema.enabled=true",
            *overrides,
        ]
    )


def test_it_measures_and_leaves_nothing(coco_folder, capsys, fresh_loggers):
    settings = ["train.best_metric=bbox/AP", "train.patience=2", "train.report=true"]
    assert call(coco_folder, *settings) == 0
    out = capsys.readouterr().out
    assert "whole run: 1,000 steps and 3 evaluations, " in out
    assert "report" not in out.partition("Dry run")[2]
    for what in ("memory: ", "step: ", "evaluation: ", "checkpoints: "):
        assert what in out
    assert [file.name for file in (coco_folder / "out").iterdir()] == [".lock"]
    check_fresh(coco_folder / "out")


def test_too_little_memory_is_one_line(coco_folder, capsys, monkeypatch):
    def fail(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(Trainer, "run_step", fail)
    assert call(coco_folder) == 2
    out, err = capsys.readouterr()
    assert "the GPU has too little memory: a smaller dataloader.train.total_batch_size" in err
    assert "Traceback" not in out + err and len(err.strip().splitlines()) == 1
    assert [file.name for file in (coco_folder / "out").iterdir()] == [".lock"]


def config(*overrides):
    cfg = get_config(NAME)
    return apply_overrides(cfg, ["train.device=cpu", *overrides])


def needs(folder, *overrides):
    """Two steps of 3 and 2 s; batches of 4 images in 8 s, 10 in the whole evaluation."""
    steps, images = StepTimes(), FirstBatches(range(10))
    steps.seconds = [3.0, 2.0]
    images.seconds, images.images = 8.0, 4
    (folder / "model_final.pth").write_bytes(bytes(3000))
    return _needs(config(*overrides), folder, steps, images)


def test_numbers_by_hand(tmp_path):
    found = needs(tmp_path, "train.max_iter=1000", "train.eval_period=300",
                  "train.checkpointer.period=100")  # fmt: skip
    assert (found.step, found.image, found.steps, found.evaluations) == (2.0, 2.0, 1000, 4)
    assert found.seconds == 1000 * 2 + 4 * 10 * 8
    # Ten numbered ones, the last, and one that is being written.
    assert (found.checkpoint, found.disk) == (3000, 12 * 3000)
    assert found.lines()[-1] == "whole run: 1,000 steps and 4 evaluations, 0:39 h"
    assert 0 < found.memory < found.memory_there

    (tmp_path / "model_ema.pth").write_bytes(bytes(1000))
    found = needs(tmp_path, "train.max_iter=1000", "train.eval_period=0", "train.best_metric=x/y",
                  "train.checkpointer={period:100,max_to_keep:3}",
                  "train.model_ema.enabled=true")  # fmt: skip
    assert found.evaluations == 1 and found.seconds == 1000 * 2 + 2 * 10 * 8
    assert found.disk == (3 + 1 + 1 + 1) * 3000 + 1000


def test_too_little_room(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "train", lambda *args, **kwargs: None)
    monkeypatch.setattr(
        dry_run, "_needs", lambda *args: Needs(1, 2, 1.0, 1.0, 9, 1, 9.0, 2**30, 5 * 2**30, 2**30)
    )
    monkeypatch.setattr(dry_run, "instantiate", lambda node: DatasetEvaluator())
    monkeypatch.setattr(dry_run, "FirstBatches", lambda loader: loader)
    cfg = config(f"train.output_dir={tmp_path}")
    with pytest.raises(UserError, match=r"need 5\.00 GiB, .* has 1\.00 GiB free: lower train\."):
        dry_run.dry_run(cfg, shortened(cfg))


def test_evaluation_is_cut_short():
    asked = []

    class Loader:
        def __len__(self):
            return 100

        def __iter__(self):
            for number in range(100):
                asked.append(number)
                yield [{"image": number}] * 3

    loader = FirstBatches(Loader())
    assert len(loader) == len(list(loader)) == dry_run.BATCHES
    assert (loader.images, loader.whole) == (3, 100) and loader.seconds > 0
    assert asked == list(range(dry_run.BATCHES))


def test_the_real_config_stays(tmp_path):
    cfg = config(f"train.output_dir={tmp_path}", "train.loggers=[mlflow]")
    before = (cfg.train.max_iter, list(cfg.train.loggers))
    short = shortened(cfg)
    assert (short.train.max_iter, list(short.train.loggers)) == (2, [])
    assert (cfg.train.max_iter, list(cfg.train.loggers)) == before
    assert short.dataloader.evaluator.output_dir.startswith(short.train.output_dir)
