"""The evaluation path, on results that others have scored."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from scripts import load_script

from mvitv2_det import UserError, get_config
from mvitv2_det.config import apply_overrides
from mvitv2_det.engine.validate import check_settings

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@pytest.fixture
def expected(shared_data):
    """Folder, and the twelve numbers of pycocotools for boxes and masks."""
    folder = shared_data("eval_pair_val2014")
    lines = [line.split() for line in (folder / "EXPECTED.txt").read_text().splitlines()]
    numbers = {
        line[0]: [float(n) for n in line[1:]] for line in lines if line[0] in ("bbox", "segm")
    }
    return folder, numbers


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_evaluator_of_the_configs_gives_what_pycocotools_gives(
    expected, task, fast, tmp_path, capfd
):
    folder, numbers = expected
    if fast:
        pytest.importorskip("faster_coco_eval")
    ground_truth = str(folder / "instances_val2014_100.json")
    name = f"eval_pair_{task}"
    register_coco_instances(name, {}, ground_truth, "")
    cfg = get_config("mask_rcnn_mvitv2_t_3x")
    cfg.dataloader.test.dataset.names = name
    cfg.train.output_dir = str(tmp_path)
    cfg.dataloader.evaluator.use_fast_impl = fast
    try:
        evaluator = instantiate(cfg.dataloader.evaluator)
        records = DatasetCatalog.get(name)
        ids = MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
        results = json.loads((folder / f"instances_val2014_fake{task}100_results.json").read_text())
        evaluator.reset()
        for record in records:
            own = [result for result in results if result["image_id"] == record["image_id"]]
            if task == "segm":
                evaluator.process([record], [{"instances": with_masks(record, own, ids)}])
            else:
                # Not as corners, as a detector has them: some of these boxes overlap the truth
                # by just a threshold, and corners turn that by rounding.
                own = [result | {"category_id": ids[result["category_id"]]} for result in own]
                prediction = {"image_id": record["image_id"], "instances": own}
                evaluator._predictions.append(prediction)
        capfd.readouterr()
        scores = evaluator.evaluate()[task]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert [scores[column] / 100 for column in COLUMNS] == pytest.approx(
        numbers[task][:6], abs=2e-6
    )
    printed = [float(line.split("=")[-1]) for line in task_summary(capfd.readouterr().out, task)]
    assert printed == pytest.approx(numbers[task], abs=5.1e-4)


def test_both_libraries_count_the_same_of_random_results(tmp_path):
    """Every entry of precision and recall, in float64; the command compares 5,000 images."""
    pytest.importorskip("faster_coco_eval")
    tool = load_script("tools/compare_evaluation.py")
    content, results = tool.random_set(40, seed=1)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    official, _ = tool.evaluate(tmp_path / "truth.json", results, fast=False)
    fast, _ = tool.evaluate(tmp_path / "truth.json", results, fast=True)
    assert set(official) == {"bbox", "segm"}
    for task, counted in official.items():
        assert 0.02 < counted["stats"][0] < 0.9
        assert tool.difference(counted, fast[task]) < 1e-6
        # Another threshold for one result is noticed.
        assert tool.difference(counted, {**counted, "recall": counted["recall"] + 1e-5}) > 1e-6


def test_a_missing_library_is_said_before_training(monkeypatch):
    cfg = get_config("mask_rcnn_mvitv2_t_3x")
    apply_overrides(cfg, ["train.device=cpu", "dataloader.evaluator.use_fast_impl=true"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs faster-coco-eval: .*mvitv2_det\[eval\]"):
        check_settings(cfg, training=False)
    cfg.dataloader.evaluator.use_fast_impl = "yes"
    with pytest.raises(UserError, match="use_fast_impl must be true or false"):
        check_settings(cfg, training=False)


def task_summary(text, task):
    """The twelve lines that pycocotools printed for the task."""
    part = text.split(f"Evaluate annotation type *{task}*")[1]
    return [line for line in part.splitlines() if line.startswith(" Average")][:12]


def with_masks(record, results, contiguous_ids):
    """COCO results of one image as what a detector returns."""
    size = (record["height"], record["width"])
    instances = Instances(size)
    instances.scores = torch.tensor([result["score"] for result in results], dtype=torch.float64)
    instances.pred_classes = torch.tensor([contiguous_ids[r["category_id"]] for r in results])
    masks = [mask_util.decode(result["segmentation"]) for result in results]
    instances.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size))
    instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    return instances
