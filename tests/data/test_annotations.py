"""Wrong and odd annotations are found before training, each named by its id."""

import copy
import json
import math
import random

import numpy as np
import pytest
from conftest import dataset_overrides, write_coco
from pycocotools import mask as coco_mask

from mvitv2_det import UserError, get_config
from mvitv2_det.config import apply_overrides
from mvitv2_det.data import prepare_datasets
from mvitv2_det.data.annotations import Odd, _decoded, repaired
from mvitv2_det.data.coco_format import check_coco_data


@pytest.fixture(params=[False, True], ids=["polygons", "rle"])
def data(tmp_path, request):
    """A json's content, and a function that writes it changed and checks it."""
    content = write_coco(tmp_path, "train", 2, rle=request.param)

    def check(odd="repair"):
        (tmp_path / "train.json").write_text(json.dumps(content))
        return check_coco_data(str(tmp_path / "train.json"), str(tmp_path / "train"), odd)

    return content, check


def annotation(**changes):
    return lambda content: content["annotations"][0].update(changes)


def image(**changes):
    return lambda content: content["images"][0].update(changes)


def ids(key, value):
    def change(content):
        content[key][0]["id"] = value

    return change


WRONG = {
    "list as id": (ids("images", [1]), r"the id \[1\] of images\[0\] is a list"),
    "dict as id": (ids("annotations", {}), r"of annotations\[0\] is a dict"),
    "float as id": (ids("annotations", 1.0), "is a float: ids must be whole numbers"),
    "truth as id": (ids("categories", True), r"the id True of categories\[0\]"),
    "large id": (ids("annotations", 2**60), "is too large"),
    "image as list": (annotation(image_id=[1]), r"annotation 1 is of image \[1\], which"),
    "image as truth": (annotation(image_id=True), "annotation 1 is of image True"),
    "category as float": (annotation(category_id=3.0), "annotation 1 is of category 3.0"),
    "file as number": (image(file_name=7), "image 1 has a 'file_name' that is no text but 7"),
    "file with NUL": (image(file_name="a\0.png"), r"image 1 has letters .*'a\\x00\.png'"),
    "surrogate": (image(file_name="\ud800.png"), r"image 1 has letters .*\\ud800"),
    "width": (image(width="64"), "image 1 has no width in pixels but '64'"),
    "height": (image(height=0), "image 1 has no height in pixels but 0"),
    "NaN box": (
        annotation(bbox=[math.nan, 1, 2, 3]),
        r"annotation 1 has no box .*\[nan, 1, 2, 3\]",
    ),
    "huge box": (annotation(bbox=[1, 1, 1e300, 3]), "annotation 1 has no box"),
    "crowd": (annotation(iscrowd=1.5), "annotation 1 has an 'iscrowd' that is neither 0 nor 1"),
    "crowd as text": (annotation(iscrowd="0"), "neither 0 nor 1 but '0'"),
    "crowd as list": (annotation(iscrowd=[0]), "neither 0 nor 1"),
    "mask as text": (annotation(segmentation="x"), "'segmentation' that is a str"),
    "mask as number": (annotation(segmentation=3), "'segmentation' that is a int"),
    "flat polygon": (annotation(segmentation=[1, 2, 3, 4, 5, 6]), "no list of polygons"),
    "polygon of texts": (annotation(segmentation=[["1"] * 6]), "no list of polygons"),
    "odd polygon": (annotation(segmentation=[[1] * 7]), "odd number of coordinates, 7"),
    "NaN polygon": (annotation(segmentation=[[math.nan] * 6]), "no list of polygons"),
    "far polygon": (annotation(segmentation=[[1, 1, 9, 1, 9, 1e9]]), "leads far outside"),
    "file above": (image(file_name="../1.png"), r"image 1 is '\.\./1\.png', which leads out of"),
    "file elsewhere": (image(file_name="/etc/passwd"), "which leads out of"),
    "size": (annotation(segmentation={"size": [64, 48], "counts": [3072]}), r"\[48, 64\] high"),
    "no size": (annotation(segmentation={"counts": [3072]}), "of the size None"),
    "runs": (annotation(segmentation={"size": [48, 64], "counts": [3000]}), "of 3000 pixels"),
    "negative": (annotation(segmentation={"size": [48, 64], "counts": [-1, 3073]}), "without runs"),
    "no runs": (annotation(segmentation={"size": [48, 64]}), "without runs but None"),
    "corrupt": (annotation(segmentation={"size": [48, 64], "counts": "\x7f\x80"}), "letter"),
    "cut off": (annotation(segmentation={"size": [48, 64], "counts": "P"}), "cut off"),
    "deep": (annotation(segmentation={"size": [48, 64], "counts": "o" * 99}), "letter"),
    "name": (
        lambda c: c["categories"][0].update(name=5),
        "category 3 has a 'name' that is no text",
    ),
    "no annotations": (lambda c: c["annotations"].clear(), "has no annotation of an instance"),
    "crowds alone": (
        lambda c: [a.update(iscrowd=1) for a in c["annotations"]],
        "has no annotation of an instance",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong(data, case):
    content, check = data
    change, words = WRONG[case]
    change(content)
    with pytest.raises(UserError, match=words) as caught:
        check()
    assert "\n" not in str(caught.value) and "train.json" in str(caught.value)


def test_a_json_nested_without_end(tmp_path):
    (tmp_path / "x.json").write_text(100_000 * "[")
    with pytest.raises(UserError, match="is no json"):
        check_coco_data(str(tmp_path / "x.json"), str(tmp_path))


POLYGON = [20, 10, 50, 10, 50, 30, 20, 30]
ODD = {
    "partly outside": (dict(bbox=[-20, 10, 50, 100]), dict(bbox=[0, 10, 30, 38]), "partly outside"),
    "outside": (dict(bbox=[-1000, 0, 10, 10]), None, "covers nothing of the image"),
    "empty": (dict(bbox=[5, 5, 0, 4]), None, "covers nothing"),
    "negative": (dict(bbox=[5, 5, -3, 4]), None, "covers nothing"),
    "crowd": (dict(iscrowd=False), dict(iscrowd=0), "'iscrowd' that is False"),
    "area": (dict(area="big"), dict(area=600), "'area' that is 'big'"),
    "NaN area": (dict(area=math.nan), dict(area=600), "'area' that is nan"),
    "two points": (
        dict(segmentation=[[1, 2, 3, 4], POLYGON]),
        dict(segmentation=[POLYGON]),
        "fewer than three points",
    ),
    "two points alone": (dict(segmentation=[[1, 2, 3, 4]]), None, "fewer than three points alone"),
    "no mask": (dict(segmentation=None), None, "no mask, although others have one"),
    "empty mask": (dict(segmentation=[]), None, "an empty 'segmentation'"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd(data, case):
    content, check = data
    change, expected, words = ODD[case]
    content["annotations"][0].update(change)
    found = check("repair")
    assert len(found.odd) == 1 and words in found.odd[0] and "the first is 1" in found.odd[0]
    kept = {one["id"]: one for one in found.repaired["annotations"]}
    assert kept[2] == content["annotations"][1]
    if expected is None:
        assert 1 not in kept
    else:
        assert kept[1] == content["annotations"][0] | expected
        assert type(kept[1]["iscrowd"]) is int
    assert [one["id"] for one in check("drop").repaired["annotations"]] == [2]
    with pytest.raises(UserError, match="annotation 1 has"):
        check("refuse")


def test_what_coco_itself_has_is_not_odd(data):
    content, check = data
    content["annotations"][0].update(bbox=[-0.5, 10, 65, 38.7])
    found = check("refuse")
    assert found.repaired is None and found.odd == []


def test_area_and_iscrowd_have_defaults(data):
    content, check = data
    del content["annotations"][0]["area"], content["annotations"][1]["iscrowd"]
    found = check("refuse")
    assert found.odd == [] and found.changed
    assert [(one["area"], one["iscrowd"]) for one in found.content["annotations"]] == [(600, 0)] * 2


def test_without_masks_instances_need_none(tmp_path, data):
    content, _ = data
    content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    content["annotations"][1]["segmentation"] = []
    for one in content["annotations"]:
        del one["area"]
    (tmp_path / "train.json").write_text(json.dumps(content))
    found = check_coco_data(str(tmp_path / "train.json"), str(tmp_path / "train"), masks=False)
    assert len(found.instances) == 2 and not found.has_masks
    assert all("segmentation" not in one and one["area"] == 600 for one in found.instances)


def test_ids_may_be_texts(data):
    content, check = data
    for key in ("images", "categories", "annotations"):
        for one in content[key]:
            one["id"] = str(one["id"])
    content["annotations"][0].update(image_id="1", category_id=3)
    content["annotations"][1].update(image_id=2, category_id="7")
    found = check("refuse")
    assert found.categories == {3: "box", 7: "plate"}
    assert [
        (one["id"], one["image_id"], one["category_id"]) for one in found.content["annotations"]
    ] == [(1, "1", 3), (2, "2", 7)]


def test_ids_that_are_words_or_of_both_kinds(data):
    content, check = data
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = "one"
    content["categories"][0]["id"] = content["annotations"][0]["category_id"] = "box"
    found = check()
    assert [image["id"] for image in found.content["images"]] == ["one", "2"]
    assert found.categories == {1: "box", 2: "plate"}
    assert [(one["image_id"], one["category_id"]) for one in found.content["annotations"]] == [
        ("one", 1),
        ("2", 2),
    ]


@pytest.mark.parametrize("own", [0, None, 2], ids=["zero", "none", "twice"])
def test_annotations_are_numbered_where_pycocotools_would_miscount(data, own):
    content, check = data
    content["annotations"][0]["id"] = own
    if own is None:
        del content["annotations"][0]["id"]
    found = check()
    assert [one["id"] for one in found.content["annotations"]] == [1, 2]
    assert len(found.odd) == 1 and "1 annotations have ids that are" in found.odd[0]


def test_a_repaired_copy_is_what_the_run_uses(coco_folder):
    file = coco_folder / "train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [-1000, 0, 10, 10]
    file.write_text(json.dumps(content))
    cfg = get_config("mask_rcnn_mvitv2_t_3x")
    output = coco_folder / "out"
    apply_overrides(cfg, [*dataset_overrides(coco_folder), f"train.output_dir={output}"])
    prepare_datasets(cfg, training=True)
    assert cfg.dataset.train_json == str(output / "train_annotations.json")
    assert cfg.dataset.val_json == str(coco_folder / "val.json")
    assert len(json.loads((output / "train_annotations.json").read_text())["annotations"]) == 3
    apply_overrides(cfg, ["dataset.odd_annotations=maybe"])
    with pytest.raises(UserError, match="must be repair, drop, refuse, got 'maybe'"):
        prepare_datasets(cfg, training=True)


def test_compressed_runs_are_read_as_pycocotools_writes_them():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.5, 0.99, 1.0):
        mask = np.asfortranarray(rng.random((37, 53)) < share, dtype=np.uint8)
        text = coco_mask.encode(mask)["counts"].decode()
        flat = mask.ravel(order="F")
        ends = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *ends, flat.size]).tolist()
        assert _decoded(text) == (runs if not flat[0] else [0, *runs])


def mutated(rng, value, depth=0):
    """A json value with something in it replaced."""
    junk = [
        None,
        True,
        -1,
        0,
        1.5,
        math.nan,
        math.inf,
        1e30,
        "",
        "x",
        "\0",
        [],
        {},
        [[]],
        [1],
        2**70,
    ]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: mutated(rng, value[key], depth + 1)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], mutated(rng, value[place], depth + 1), *value[place + 1 :]]
    return copy.deepcopy(rng.choice(junk))


def test_three_hundred_mutated_annotations_end_in_one_line_or_are_decodable():
    """What passes is what pycocotools can decode; COCO's own code would crash on some of it."""
    rng = random.Random(0)
    good = [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [20, 10, 30, 20], "area": 600,
         "iscrowd": 0, "segmentation": segmentation}
        for segmentation in ([POLYGON], {"size": [48, 64], "counts": [970, 20, 2082]},
                             coco_mask.encode(np.asfortranarray(np.eye(48, 64, dtype=np.uint8)))
                             | {"counts": coco_mask.encode(np.asfortranarray(
                                 np.eye(48, 64, dtype=np.uint8)))["counts"].decode()})
    ]  # fmt: skip
    passed = 0
    for _ in range(300):
        changed = mutated(rng, rng.choice(good))
        if not isinstance(changed, dict) or not {"bbox", "area", "iscrowd"} <= changed.keys():
            continue  # what the check of records refuses
        try:
            kept, _ = repaired(changed, 64, 48)
        except (UserError, Odd):
            continue
        passed += 1
        mask = kept.get("segmentation")
        if mask:
            rles = coco_mask.frPyObjects(mask, 48, 64) if not isinstance(mask, dict) or isinstance(
                mask["counts"], list) else mask  # fmt: skip
            assert coco_mask.decode(rles).shape[:2] == (48, 64)
    assert 20 < passed < 200
