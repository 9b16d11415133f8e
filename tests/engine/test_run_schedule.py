"""Runs in epochs and for another batch, by the numbers that they have for the recipe."""

import json

import pytest
from conftest import dataset_overrides, tiny_overrides

from mvitv2_det import UserError, get_config
from mvitv2_det.commands import main
from mvitv2_det.config import apply_overrides, load_config
from mvitv2_det.data import prepare_datasets
from mvitv2_det.engine.schedule import collecting_notes, set_schedule

NAME = "mask_rcnn_mvitv2_t_3x"


def scheduled(*overrides, folder=None):
    """The config after what the overrides ask for, and what is said of it."""
    cfg = get_config(NAME)
    apply_overrides(cfg, [*(dataset_overrides(folder) if folder else []), *overrides])
    if folder:
        prepare_datasets(cfg, training=True)
    with collecting_notes() as notes:
        set_schedule(cfg)
    train = cfg.train
    numbers = (train.max_iter, train.eval_period, train.checkpointer.period)
    return cfg, numbers, notes


def test_nothing_is_scaled_unasked():
    cfg, numbers, notes = scheduled("dataloader.train.total_batch_size=4")
    assert (cfg.optimizer.lr, numbers, notes) == (1.6e-4, (67500, 5000, 5000), [])


def test_another_batch():
    """The numbers are those of the documentation for one GPU: a sixteenth of the batch of 64."""
    cfg, numbers, notes = scheduled(
        "dataloader.train.total_batch_size=4", "train.reference_batch=64"
    )
    assert cfg.optimizer.lr == pytest.approx(1e-5)
    assert numbers == (1080000, 80000, 80000)
    assert notes[0] == "optimizer.lr 1e-05 = 0.00016 × 4/64"
    assert notes[1] == "train.max_iter is 1080000: × 64/4"
    # What is saved is not scaled again.
    assert cfg.train.reference_batch == 4
    set_schedule(cfg)
    assert cfg.optimizer.lr == pytest.approx(1e-5) and cfg.train.max_iter == 1080000


def test_a_period_that_is_off_stays_off():
    _, numbers, _ = scheduled(
        "dataloader.train.total_batch_size=128", "train.reference_batch=64", "train.eval_period=0"
    )
    assert numbers == (33750, 0, 2500)


def test_epochs(coco_folder):
    """Four images in batches of two: two iterations each."""
    batch = "dataloader.train.total_batch_size=2"
    cfg, numbers, notes = scheduled(batch, "train.epochs=10", folder=coco_folder)
    assert numbers == (20, 5000, 5000) and cfg.optimizer.lr == 1.6e-4
    assert notes == ["train.max_iter is 20: 10 epochs of 4 images in batches of 2"]
    cfg, numbers, _ = scheduled(
        batch,
        "train.epochs=10.5",
        "train.eval_epochs=3",
        "train.reference_batch=64",
        folder=coco_folder,
    )
    assert numbers == (21, 6, 6) and cfg.optimizer.lr == pytest.approx(5e-6)


def test_images_without_objects_do_not_count(coco_folder):
    """Detectron2 leaves them out of training."""
    file = coco_folder / "train.json"
    content = json.loads(file.read_text())
    content["annotations"] = content["annotations"][:2]
    file.write_text(json.dumps(content))
    _, numbers, _ = scheduled(
        "dataloader.train.total_batch_size=1", "train.epochs=3", folder=coco_folder
    )
    assert numbers[0] == 6


def test_more_than_there_is(coco_folder):
    with pytest.raises(UserError, match="total_batch_size is 64, but there are 4 images"):
        scheduled("train.epochs=1", folder=coco_folder)


def test_a_config_with_a_recipe_of_its_own():
    cfg = get_config(NAME)
    cfg.recipe = {"epochs": 3}
    cfg.train.epochs = 2
    with pytest.raises(UserError, match=r"set recipe\.epochs"):
        set_schedule(cfg)


@pytest.mark.usefixtures("fresh_loggers")
def test_the_command_says_it_in_the_log(coco_folder):
    out = coco_folder / "out"
    overrides = [
        *tiny_overrides(get_config(NAME)),
        *dataset_overrides(coco_folder),
        f"train.output_dir={out}",
        "train.epochs=1",
        "train.reference_batch=64",
        "train.eval_period=0",
    ]
    assert main(["train", "--config-file", NAME, *overrides]) == 0
    log = (out / "log.txt").read_text()
    assert "optimizer.lr 5e-06 = 0.00016 × 2/64" in log
    assert "train.max_iter is 2: 1 epochs of 4 images in batches of 2" in log
    saved = load_config(str(out / "config.yaml"))
    assert (saved.train.max_iter, saved.optimizer.lr) == (2, pytest.approx(5e-6))
