"""dataset.train and dataset.val take any format."""

import json

import pytest
import samples
from conftest import tiny_overrides

from mvitv2_det import UserError, get_config
from mvitv2_det.commands import main
from mvitv2_det.config import apply_overrides
from mvitv2_det.data import prepare_datasets

NAME = "mask_rcnn_mvitv2_t_3x"
BOXES = [
    "model.roi_heads.mask_in_features=null",
    "dataloader.train.mapper.use_instance_mask=false",
]


def prepared(tmp_path, *overrides, training=True):
    cfg = get_config(NAME)
    apply_overrides(cfg, [f"train.output_dir={tmp_path}/out", *overrides])
    prepare_datasets(cfg, training=training)
    return cfg


def content(cfg, split):
    with open(cfg.dataset[f"{split}_json"]) as file:
        return json.load(file)


def test_a_folder_with_splits(tmp_path):
    folder = samples.yolo_polygons(tmp_path / "yolo")
    cfg = prepared(tmp_path, f"dataset.train={folder}")
    assert cfg.dataset.train_json == str(tmp_path / "out" / "train_annotations.json")
    assert (len(content(cfg, "train")["images"]), len(content(cfg, "val")["images"])) == (4, 2)
    assert cfg.dataset.categories == {0: "box", 1: "plate"}
    assert cfg.model.roi_heads.num_classes == 2
    # What is saved with the run leads to the same data, in other processes as well.
    assert cfg.dataset.train is None
    prepare_datasets(cfg, training=True, check=False)
    prepare_datasets(cfg, training=True)


def test_coco_files_are_used_as_they_are(tmp_path):
    folder = samples.coco(tmp_path / "coco")
    cfg = prepared(tmp_path, f"dataset.train={folder}")
    assert cfg.dataset.train_json == str(folder / "annotations" / "instances_train.json")
    assert cfg.dataset.val_images == str(folder / "images" / "val")
    assert not (tmp_path / "out").exists()


def test_a_share_is_for_validation_where_there_is_none(tmp_path):
    file = samples.unsplit(tmp_path / "unsplit")
    cfg = prepared(tmp_path, f"dataset.train={file}", "dataset.val_share=0.5")
    assert [len(content(cfg, split)["images"]) for split in ("train", "val")] == [2, 2]
    for override, words in (
        ("val_share=2", "val_share must be a number between 0 and 1, got 2"),
        ("split_seed=0.5", r"split_seed must be a whole number, got 0\.5"),
        ("format=yolov8", "the format must be coco"),
    ):
        with pytest.raises(UserError, match=words):
            prepared(tmp_path, f"dataset.train={file}", f"dataset.{override}")


def test_two_sources_of_two_formats(tmp_path):
    train = samples.yolo_traced(tmp_path / "yolo")
    val = samples.cvat(tmp_path / "cvat")
    cfg = prepared(tmp_path, f"dataset.train={train}", f"dataset.val={val}")
    assert len(content(cfg, "train")["images"]) == 4
    assert {image["file_name"] for image in content(cfg, "val")["images"]} == {
        "images/val_1.png",
        "images/val_2.png",
    }
    assert content(cfg, "val")["categories"] == content(cfg, "train")["categories"]


def test_an_evaluation_has_the_categories_of_its_training(tmp_path):
    val = samples.cvat(tmp_path / "cvat")
    cfg = prepared(
        tmp_path, f"dataset.val={val}", "+dataset.categories={5:plate,9:box,10:x}", training=False
    )
    assert cfg.dataset.categories == {5: "plate", 9: "box", 10: "x"}
    assert cfg.model.roi_heads.num_classes == 3
    with pytest.raises(UserError, match=r"'box' .* is unknown to dataset\.categories"):
        prepared(tmp_path, f"dataset.val={val}", "+dataset.categories={5:plate}", training=False)


def trained(tmp_path, folder, *overrides):
    """Trains two iterations, evaluates, and returns the metrics."""
    output = tmp_path / "out"
    status = main(
        [
            *("train", "--config-file", NAME),
            *tiny_overrides(get_config(NAME)),
            *(f"dataset.train={folder}", f"train.output_dir={output}"),
            *overrides,
        ]
    )
    assert status == 0
    metrics = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert "bbox/AP" in metrics[-1]
    assert ("segm/AP" in metrics[-1]) == (BOXES[0] not in overrides)


@pytest.mark.usefixtures("fresh_loggers")
def test_data_with_every_fault_train_with_what_is_sound(tmp_path, caplog):
    folder = samples.with_every_fault(tmp_path / "faults")
    trained(tmp_path, folder)
    for words in (
        "1 annotations have polygons of fewer than three points alone (the first is '1'): left out",
        "1 annotations have an 'iscrowd' that is False, a polygon of fewer than three points",
        "1 annotations have an empty 'segmentation'",
        "1 annotations have a box that is partly outside of the image",
        "6 annotations have ids that are texts",
        "category 'things' groups others and has no instance: left out",
        "val.json has no instance of 1 of 2 categories, which cannot be evaluated: 'plate'",
    ):
        assert words in caplog.text
    train = json.loads((tmp_path / "out" / "train_annotations.json").read_text())
    val = json.loads((tmp_path / "out" / "val_annotations.json").read_text())
    assert train["categories"] == val["categories"]
    assert [one["name"] for one in train["categories"]] == ["box", "plate"]
    assert len(train["annotations"]) == 6
    assert all(one["area"] > 0 and one["iscrowd"] == 0 for one in train["annotations"])


@pytest.mark.long
@pytest.mark.usefixtures("fresh_loggers")
@pytest.mark.parametrize("name", samples.ALL)
def test_every_format_trains_and_evaluates(tmp_path, name):
    folder = samples.ALL[name][0](tmp_path / "data")
    trained(tmp_path, folder, *(BOXES if name in samples.BOXES_ALONE else []))
