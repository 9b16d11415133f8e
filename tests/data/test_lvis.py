"""LVIS: evaluation against the lvis package called directly, the federated loss, the config."""

import json
import sys

import pytest
import torch
from conftest import dataset_overrides, tiny_overrides
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

from mvitv2_det import get_config
from mvitv2_det.commands import main
from mvitv2_det.config import apply_overrides
from mvitv2_det.data import prepare_datasets
from mvitv2_det.data.lvis import FederatedLossWeights, LvisEvaluator, numpy_with_float
from mvitv2_det.engine import build_model
from mvitv2_det.errors import UserError

CONFIG = "lvis_cascade_mask_rcnn_mvitv2_b_in21k_100ep"
FREQUENCIES = ("r", "c", "f")


def make_lvis(file):
    """Makes COCO's annotations those of LVIS: frequencies, and what images say of classes."""
    content = json.loads(file.read_text())
    present = {image["id"]: set() for image in content["images"]}
    for one in content["annotations"]:
        present[one["image_id"]].add(one["category_id"])
    for index, category in enumerate(content["categories"]):
        category["frequency"] = FREQUENCIES[index % 3]
        images = [image for image, categories in present.items() if category["id"] in categories]
        category.update(image_count=len(images), instance_count=len(images), synset="x")
    ids = {category["id"] for category in content["categories"]}
    for image in content["images"]:
        image["neg_category_ids"] = sorted(ids - present[image["id"]])
        image["not_exhaustive_category_ids"] = []
    file.write_text(json.dumps(content))
    return content


@pytest.fixture
def lvis_folder(coco_folder):
    for split in ("train", "val"):
        make_lvis(coco_folder / f"{split}.json")
    return coco_folder


@pytest.fixture
def cfg(lvis_folder):
    """The config, narrow, on small data of its own."""
    cfg = get_config(CONFIG)
    apply_overrides(cfg, tiny_overrides(cfg) + dataset_overrides(lvis_folder))
    cfg.train.output_dir = str(lvis_folder / "out")
    prepare_datasets(cfg, training=True)
    return cfg


def instances(content, image, generator):
    """What a detector might have found: boxes near those of an image, and some elsewhere."""
    boxes, classes = [], []
    for one in content["annotations"]:
        if one["image_id"] != image["id"]:
            continue
        left, top, width, height = one["bbox"]
        shift = 4 * torch.randn(4, generator=generator)
        boxes.append(torch.tensor([left, top, left + width, top + height]) + shift)
        classes.append(one["category_id"])
    boxes.append(torch.tensor([1.0, 1.0, 9.0, 12.0]))
    classes.append(content["categories"][0]["id"])
    found = Instances((image["height"], image["width"]))
    found.pred_boxes = Boxes(torch.stack(boxes))
    found.scores = torch.rand(len(boxes), generator=generator)
    ids = [category["id"] for category in content["categories"]]
    found.pred_classes = torch.tensor([ids.index(one) for one in classes])
    return found


def test_results_are_those_of_the_package(cfg, lvis_folder):
    lvis = pytest.importorskip("lvis")
    content = json.loads((lvis_folder / "val.json").read_text())
    generator = torch.Generator().manual_seed(1)
    evaluator = instantiate(cfg.dataloader.evaluator)
    assert isinstance(evaluator, LvisEvaluator)
    DatasetCatalog.get(cfg.dataloader.test.dataset.names)
    evaluator.reset()
    records = []
    for image in content["images"]:
        found = instances(content, image, generator)
        evaluator.process([{"image_id": image["id"]}], [{"instances": found}])
        for box, score, kind in zip(
            found.pred_boxes.tensor, found.scores, found.pred_classes, strict=True
        ):
            left, top, right, bottom = box.tolist()
            records.append(
                {
                    "image_id": image["id"],
                    "category_id": content["categories"][kind]["id"],
                    "bbox": [left, top, right - left, bottom - top],
                    "score": score.item(),
                }
            )
    results = evaluator.evaluate()["bbox"]

    truth = lvis.LVIS(str(lvis_folder / "val.json"))
    direct = lvis.LVISEval(truth, lvis.LVISResults(truth, records, max_dets=300), "bbox")
    direct.params.max_dets = 300
    with numpy_with_float():
        direct.run()
    expected = direct.get_results()
    assert 0 < results["AP"] < 100
    for name in ("AP", "AP50", "AP75", "APr", "APc"):
        assert results[name] == pytest.approx(100 * expected[name], abs=1e-9), name


def test_numpy_gets_nothing_for_good():
    import numpy as np

    had = "float" in vars(np)
    with numpy_with_float():
        assert np.zeros(1).astype(np.float).dtype == np.float64
    assert ("float" in vars(np)) == had


def test_the_config_trains_a_step_and_its_rare_classes_are_repeated(cfg):
    model = build_model(cfg).train()
    assert model.roi_heads.box_predictor[0].use_fed_loss
    # Of own data the numbers are counted: each class is in some of the four images.
    records = DatasetCatalog.get(cfg.dataloader.train.dataset.names)
    counts = torch.zeros(2)
    for record in records:
        counts[list({one["category_id"] for one in record["annotations"]})] += 1
    assert torch.equal(model.roi_heads.box_predictor[0].fed_loss_cls_weights, counts.sqrt())
    sampler = instantiate(cfg.dataloader.train.sampler)
    assert len(sampler._int_part) == len(records)
    with EventStorage():
        losses = model(next(iter(instantiate(cfg.dataloader.train))))
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.long
@pytest.mark.usefixtures("fresh_loggers")
def test_it_trains_and_evaluates(lvis_folder):
    """Two iterations on own data in LVIS's format; boxes and masks evaluated by the package."""
    pytest.importorskip("lvis")
    overrides = tiny_overrides(get_config(CONFIG)) + dataset_overrides(lvis_folder)
    output = lvis_folder / "out"
    overrides += [f"train.output_dir={output}", "train.log_period=1"]
    assert main(["train", "--config-file", CONFIG, *overrides]) == 0
    last = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    assert {"bbox/AP", "bbox/APr", "segm/AP", "segm/APf"} <= set(last)
    weights = f"train.init_checkpoint={output}/model_final.pth"
    saved = str(output / "config.yaml")
    assert main(["train", "--config-file", saved, "--eval-only", weights]) == 0


def test_weights_of_lvis_are_detectron2s():
    weights = FederatedLossWeights("lvis_v1_train", 1203, 0.5)()
    assert torch.equal(weights, get_fed_loss_cls_weights("lvis_v1_train", 0.5))
    assert len(weights) == 1203 and weights.max() > 10 * weights.min()


def test_without_the_training_split_all_classes_weigh_alike():
    assert FederatedLossWeights("no such split", 3)().tolist() == [1, 1, 1]


def test_without_the_package_it_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lvis", None)
    monkeypatch.setattr("mvitv2_det.data.lvis.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mvitv2_det\[lvis\]'"):
        LvisEvaluator("lvis_v1_val")
    assert main(["train", "--config-file", CONFIG, "train.device=cpu"]) == 2
    assert "LVIS needs the package lvis: pip install" in capsys.readouterr().err


def test_names_are_registered():
    cfg = get_config(CONFIG)
    for split in (cfg.dataloader.train, cfg.dataloader.test):
        assert split.dataset.names in DatasetCatalog.list()
        assert MetadataCatalog.get(split.dataset.names).evaluator_type == "lvis"
    assert OmegaConf.select(cfg, "dataloader.evaluator.max_dets_per_image") == 300
