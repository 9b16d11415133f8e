"""Real data in COCO's format, where they stand beside the checkout."""

import json

import pytest
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog

from mvitv2_det import get_config
from mvitv2_det.config import apply_overrides
from mvitv2_det.data import prepare_datasets


def prepared(train_json, train_images, val_json, val_images):
    cfg = get_config("mask_rcnn_mvitv2_t_3x")
    paths = {
        "train_json": train_json,
        "train_images": train_images,
        "val_json": val_json,
        "val_images": val_images,
    }
    apply_overrides(cfg, [f"dataset.{key}={path}" for key, path in paths.items()])
    prepare_datasets(cfg, training=True)
    return cfg


def test_coco_classes_crowds_and_empty_images(shared_data):
    folder = shared_data("coco2017_mini")
    jsons = {
        split: folder / f"annotations/instances_{split}2017.json" for split in ("train", "val")
    }
    cfg = prepared(jsons["train"], folder / "train2017", jsons["val"], folder / "val2017")
    assert cfg.model.roi_heads.num_classes == 80
    train, val = (instantiate(cfg.dataloader[split].dataset) for split in ("train", "test"))
    metadata = MetadataCatalog.get(cfg.dataloader.evaluator.dataset_name)
    # COCO's ids have gaps; by Detectron2's list the classes are those of its own coco_2017_val.
    assert metadata.thing_classes == MetadataCatalog.get("coco_2017_val").thing_classes
    assert metadata.thing_dataset_id_to_contiguous_id[90] == 79

    images = json.loads(jsons["train"].read_text())["images"]
    assert 0 < len(train) < len(images), "images without instances are not trained on"
    assert len(val) == 62, "but all are evaluated"

    mapper = instantiate(cfg.dataloader.train.mapper)
    mapper.augmentations.augs = []
    with_crowd = next(r for r in train if any(a["iscrowd"] for a in r["annotations"]))
    instances = mapper(with_crowd)["instances"]
    assert len(instances) == sum(not a["iscrowd"] for a in with_crowd["annotations"])


def test_nuclei_masks_are_run_length_encoded(shared_data):
    folder = shared_data("nuclei256")
    images = folder / "images"
    cfg = prepared(folder / "instances_train.json", images, folder / "instances_val.json", images)
    assert cfg.model.roi_heads.num_classes == 1
    assert cfg.dataloader.train.mapper.instance_mask_format == "bitmask"
    record = instantiate(cfg.dataloader.train.dataset)[0]
    mapper = instantiate(cfg.dataloader.train.mapper)
    mapper.augmentations.augs = []
    masks = mapper(record)["instances"].gt_masks.tensor
    assert len(masks) == len(record["annotations"])
    annotations = json.loads((folder / "instances_train.json").read_text())["annotations"]
    areas = [a["area"] for a in annotations if a["image_id"] == record["image_id"]]
    assert sorted(masks.sum(dim=(1, 2)).tolist()) == pytest.approx(sorted(areas))
