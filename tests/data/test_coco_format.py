"""Bad data stop a run before it starts, in words that name the culprit."""

import json

import pytest
from conftest import write_coco
from PIL import Image

from mvitv2_det import UserError
from mvitv2_det.data.coco_format import check_coco_data


@pytest.fixture
def data(tmp_path):
    """A json's content, and a function that writes it changed and checks it."""
    content = write_coco(tmp_path, "train", 2)

    def check():
        (tmp_path / "train.json").write_text(json.dumps(content))
        return check_coco_data(str(tmp_path / "train.json"), str(tmp_path / "train"))

    return content, check, tmp_path


def test_summary(tmp_path):
    write_coco(tmp_path, "polygons", 2)
    write_coco(tmp_path, "rle", 2, rle=True)
    polygons, rle = (
        check_coco_data(str(tmp_path / f"{name}.json"), str(tmp_path / name))
        for name in ("polygons", "rle")
    )
    assert polygons.categories == {3: "box", 7: "plate"}
    assert (polygons.has_masks, polygons.has_rle) == (True, False)
    assert (rle.has_masks, rle.has_rle) == (True, True)


def test_crowds_may_be_run_length_encoded_among_polygons(data):
    content, check, _ = data
    content["annotations"][0].update(iscrowd=1, segmentation={"size": [48, 64], "counts": [3072]})
    assert not check().has_rle


def test_a_box_may_hold_whole_numbers_and_fractions(data):
    content, check, _ = data
    content["annotations"][0].update(bbox=[20, 10.5, 29.25, 20])
    check()


CHANGES = {
    "no list": (lambda c: c.pop("images"), "it has no list 'images'"),
    "no field": (lambda c: c["annotations"][1].pop("bbox"), r"annotations\[1\] has no 'bbox'"),
    "no record": (lambda c: c["images"].append(5), r"images\[2\] has no 'id'"),
    "twice": (lambda c: c["images"][1].update(id=1), "the id 1 stands twice in 'images'"),
    "image": (lambda c: c["annotations"][0].update(image_id=9), "annotation 1 is of image 9"),
    "category": (lambda c: c["annotations"][0].update(category_id=9), "is of category 9, which"),
    "box": (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), r"but \[1, 2, 3\]"),
    "box of truth values": (
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3, True]),
        r"no box .* but \[1, 2, 3, True\]",
    ),
    "box of words": (
        lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "4"]),
        r"no box .* but \[1, 2, 3, '4'\]",
    ),
    "ignore": (lambda c: c["annotations"][0].update(ignore=1), "has 'ignore'"),
    "empty": (lambda c: [c[k].clear() for k in ("images", "annotations")], "nothing to train on"),
    "size": (lambda c: c["images"][0].update(width=60), "is 64×48, but .* says 60×48"),
    "file": (
        lambda c: c["images"][0].update(file_name="x.png"),
        "x.png: .*No such file",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_wrong_content(data, case):
    content, check, _ = data
    change, words = CHANGES[case]
    change(content)
    with pytest.raises(UserError, match=words) as caught:
        check()
    assert "train.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "is no json"), ("[]", "expected an object .* got a list"), ("\xff", "is no json")],
)
def test_no_coco_json(tmp_path, text, words):
    file = tmp_path / "train.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=words):
        check_coco_data(str(file), str(tmp_path))


def test_missing_files(data):
    _, _, folder = data
    with pytest.raises(UserError, match=r"cannot read .*none\.json: No such file"):
        check_coco_data(str(folder / "none.json"), str(folder / "train"))
    with pytest.raises(UserError, match=r"there is no image folder .*none, which .*train\.json"):
        check_coco_data(str(folder / "train.json"), str(folder / "none"))


def test_a_file_that_is_no_image(data):
    _, check, folder = data
    (folder / "train" / "1.png").write_text("no image")
    with pytest.raises(UserError, match=r"cannot read image .*1\.png: cannot identify"):
        check()


def test_an_image_turned_by_exif_has_the_turned_size(data):
    content, check, folder = data
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 64)).save(folder / "train" / "turned.jpg", exif=exif)
    content["images"][0].update(file_name="turned.jpg")
    check()
