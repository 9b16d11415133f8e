import json

import pytest
from conftest import dataset_overrides, write_coco
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog

from mvitv2_det import UserError, get_config
from mvitv2_det.config import apply_overrides
from mvitv2_det.data import prepare_datasets


@pytest.fixture
def cfg():
    return get_config("mask_rcnn_mvitv2_t_3x")


def test_own_data_set_classes_loaders_and_names(cfg, coco_folder):
    apply_overrides(cfg, dataset_overrides(coco_folder))
    prepare_datasets(cfg, training=True)
    assert cfg.model.roi_heads.num_classes == 2
    assert cfg.model.roi_heads.box_predictor.num_classes == 2
    assert cfg.dataset.categories == {3: "box", 7: "plate"}
    assert cfg.dataloader.train.mapper.instance_mask_format == "polygon"
    train, val = (instantiate(cfg.dataloader[split].dataset) for split in ("train", "test"))
    assert (len(train), len(val)) == (4, 2)
    assert [record["annotations"][0]["category_id"] for record in val] == [0, 1]
    assert MetadataCatalog.get(cfg.dataloader.evaluator.dataset_name).thing_classes == [
        "box",
        "plate",
    ]


def test_run_length_encoded_masks_are_kept_as_bitmasks(cfg, tmp_path):
    for split in ("train", "val"):
        write_coco(tmp_path, split, 2, rle=True)
    apply_overrides(cfg, dataset_overrides(tmp_path))
    prepare_datasets(cfg, training=True)
    mapper = instantiate(cfg.dataloader.train.mapper)
    mapper.augmentations.augs = []
    record = instantiate(cfg.dataloader.train.dataset)[0]
    masks = mapper(record)["instances"].gt_masks.tensor
    assert masks.sum() == 600
    assert masks[0, 10:30, 20:50].all()


def test_evaluation_needs_the_validation_split_alone(cfg, coco_folder):
    apply_overrides(cfg, dataset_overrides(coco_folder)[2:])
    prepare_datasets(cfg, training=False)
    assert cfg.model.roi_heads.num_classes == 2
    with pytest.raises(UserError, match=r"dataset\.train_json is missing"):
        prepare_datasets(cfg, training=True)


def test_instances_without_masks(cfg, coco_folder):
    file = coco_folder / "train.json"
    file.write_text(file.read_text().replace("segmentation", "outline"))
    apply_overrides(cfg, dataset_overrides(coco_folder))
    with pytest.raises(UserError, match="mask_in_features=null"):
        prepare_datasets(cfg, training=True)
    apply_overrides(
        cfg,
        [
            "model.roi_heads.mask_in_features=null",
            "dataloader.train.mapper.use_instance_mask=false",
        ],
    )
    prepare_datasets(cfg, training=True)


def test_coco_that_is_not_there(cfg, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="set DETECTRON2_DATASETS to the folder"):
        prepare_datasets(cfg, training=True)
    cfg.dataloader.test.dataset.names = "no_such_data"
    with pytest.raises(UserError, match="there is no data set 'no_such_data'"):
        prepare_datasets(cfg, training=False)


def test_masks_are_not_scored_by_data_without_any(cfg, coco_folder):
    """pycocotools would end the first evaluation, hours after the start."""
    file = coco_folder / "val.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    file.write_text(json.dumps(content))
    apply_overrides(cfg, dataset_overrides(coco_folder))
    with pytest.raises(UserError, match=r"val\.json has instances .*\+dataloader.evaluator.tasks"):
        prepare_datasets(cfg, training=True)
    apply_overrides(cfg, ["+dataloader.evaluator.tasks=[bbox]"])
    prepare_datasets(cfg, training=True)
