"""Each format gives the COCO content that its sample was made from."""

import json

import numpy as np
import pytest
import samples
from PIL import Image

from mvitv2_det import UserError
from mvitv2_det.data.coco_format import check_coco_data
from mvitv2_det.data.findings import Findings
from mvitv2_det.data.formats import read_data

EXACT = ("coco", "roboflow", "lvis", "unsplit", "yolo_polygons", "cvat")


def read(path, format=None, odd="repair"):
    findings = Findings(str(path), odd)
    return read_data(path, findings, format), findings


def instances(content):
    """All that is known of each instance, sorted: file, class, box, polygons."""
    names = {one["id"]: one["name"] for one in content["categories"]}
    files = {one["id"]: one["file_name"].rsplit("/")[-1] for one in content["images"]}
    return sorted(
        (files[one["image_id"]], names[one["category_id"]], one["bbox"], one.get("segmentation"))
        for one in content["annotations"]
    )


@pytest.mark.parametrize("name", samples.ALL)
def test_it_is_detected_and_equal_to_its_source(tmp_path, name):
    write, format = samples.ALL[name]
    data, findings = read(write(tmp_path / name))
    assert data.format == format and findings.faults == []
    assert set(data.splits) in ({"train", "val"}, {"train"}, {""})
    for split, found in data.splits.items():
        truth = instances(samples.source(split or "train"))
        mine = instances(found.content)
        assert [one[:2] for one in mine] == [one[:2] for one in truth]
        file = found.json_file or tmp_path / "written.json"
        file.write_text(json.dumps(found.content))
        summary = check_coco_data(str(file), str(found.images), "refuse")
        assert {"box", "plate"} <= set(summary.categories.values())
        for one, other in zip(mine, truth, strict=True):
            if name in EXACT:
                assert one[2:] == (pytest.approx(other[2]), [pytest.approx(other[3][0])])
            elif name in samples.BOXES_ALONE:
                assert one[2] == pytest.approx(other[2], abs=1e-4) and one[3] is None
            else:  # pixels of the border differ
                drawn, right = (samples.drawn({"segmentation": each[3]}) for each in (one, other))
                both, either = (drawn & right).sum(), (drawn | right).sum()
                assert both / either > (0.999 if name == "panoptic" else 0.7)
                assert one[2] == pytest.approx(other[2], abs=1.5)


def test_a_format_may_be_named_and_must_be_when_there_are_two(tmp_path):
    folder = samples.yolo(tmp_path / "both")
    (folder / "annotations.xml").write_bytes((samples.SAMPLES / "cvat/train.xml").read_bytes())
    with pytest.raises(UserError, match="could be yolo or cvat: say which"):
        read(folder)
    assert read(folder, "yolo")[0].format == "yolo"
    with pytest.raises(UserError, match="is not in the format 'voc'"):
        read(folder, "voc")
    with pytest.raises(UserError, match=r"the format must be coco, .*, got 'yolov8'"):
        read(folder, "yolov8")
    with pytest.raises(UserError, match="there is no"):
        read(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="in none of the known formats"):
        read(tmp_path / "empty")


def write_voc(folder, *objects, name="a.png", extra=""):
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    samples.write_images(folder / "JPEGImages")
    Image.new("RGB", (64, 48)).save(folder / "JPEGImages" / "a.png")
    (folder / "Annotations" / "a.xml").write_text(
        f"<annotation>\n<filename>{name}</filename>{extra}\n{''.join(objects)}</annotation>"
    )
    return folder


BOX = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"


def voc_object(*box, name="box"):
    return f"<object><name>{name}</name>{BOX.format(*box)}</object>\n"


def test_boxes_of_voc_count_pixels_from_one(tmp_path):
    """As detectron2.data.datasets.pascal_voc reads them."""
    folder = write_voc(tmp_path / "voc", voc_object(1, 1, 64, 48), voc_object(1.5, 2.0, 9, 9))
    boxes = [one["bbox"] for one in read(folder)[0].splits[""].content["annotations"]]
    assert boxes == [[0, 0, 64, 48], [1.5, 2, 7.5, 7]]


def test_masks_of_voc_are_read_by_the_number_of_the_object(tmp_path):
    folder = write_voc(tmp_path / "voc", voc_object(11, 5, 20, 9), voc_object(31, 5, 40, 9))
    mask = np.zeros((48, 64), np.uint8)
    mask[4:9, 10:20], mask[4:9, 30:40], mask[9] = 1, 2, 255
    image = Image.fromarray(mask, "L")
    (folder / "SegmentationObject").mkdir()
    image.save(folder / "SegmentationObject" / "a.png")
    found = read(folder)[0].splits[""].content["annotations"]
    assert [np.array_equal(samples.drawn(one), mask == n) for n, one in enumerate(found, 1)] == [
        True,
        True,
    ]


def write_labelme(folder, *shapes, **changes):
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    content = {"shapes": list(shapes), "imagePath": "a.png", "imageData": None} | changes
    (folder / "a.json").write_text(json.dumps(content))
    return folder


def test_shapes_of_labelme(tmp_path):
    """A mask as LabelMe 5.4 writes it: a PNG of its box, the last pixel included."""
    folder = write_labelme(
        tmp_path / "labelme",
        {"label": "a", "points": [[30, 20], [10, 5]], "shape_type": "rectangle"},
        {"label": "a", "points": [[30, 20], [30, 30]], "shape_type": "circle"},
        {"label": "a", "points": [[1, 1]], "shape_type": "point"},
        # 3×2 pixels, of which the first is not of it
        {"label": "a", "points": [[4, 5], [6, 6]], "shape_type": "mask", "mask": MASK},
        {"label": "b", "points": [[0, 0], [9, 0], [9, 9]], "group_id": 1},
        {"label": "b", "points": [[20, 0], [29, 0], [29, 9]], "group_id": 1},
        imagePath="..\\labelme\\a.png",
    )
    data, findings = read(folder)
    box, circle, mask, group = data.splits[""].content["annotations"]
    assert box["bbox"] == [10, 5, 20, 15] and "segmentation" not in box
    assert circle["bbox"] == pytest.approx([20, 10, 20, 20], abs=0.5)
    assert samples.drawn(circle).sum() == pytest.approx(np.pi * 100, rel=0.02)
    assert mask["bbox"] == [4, 5, 3, 2]
    assert np.argwhere(samples.drawn(mask)).tolist() == [[5, 5], [5, 6], [6, 4], [6, 5], [6, 6]]
    assert len(group["segmentation"]) == 2 and group["bbox"] == [0, 0, 29, 9]
    assert "1 shapes have the type 'point'" in findings.lines[0]


def _mask_png():
    import base64
    import io

    file = io.BytesIO()
    Image.fromarray(np.array([[0, 1, 1], [1, 1, 1]], np.uint8) * 255).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


MASK = _mask_png()


def write_cvat(folder, *shapes, subset="", name="a.png", prolog=""):
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(folder / "images" / "a.png")
    (folder / "annotations.xml").write_text(
        f"{prolog}<annotations><meta><job><labels><label><name>x</name></label></labels></job>"
        f"</meta>\n<image id='0' name='{name}' subset='{subset}' width='64' height='48'>\n"
        + "\n".join(shapes)
        + "</image></annotations>"
    )
    return folder


def test_shapes_of_cvat(tmp_path):
    folder = write_cvat(
        tmp_path / "cvat",
        "<mask label='x' rle='1, 2, 3' left='4' top='5' width='3' height='2'/>",
        "<ellipse label='x' cx='30' cy='20' rx='10' ry='5' rotation='90'/>",
        "<box label='x' xtl='20' ytl='10' xbr='40' ybr='20' rotation='90.00'/>",
        "<polyline label='x' points='1,2;3,4'/>",
        subset="Validation",
    )
    data, findings = read(folder)
    mask, ellipse, box = data.splits["val"].content["annotations"]
    assert np.argwhere(samples.drawn(mask)).tolist() == [[5, 5], [5, 6]]
    assert ellipse["bbox"] == pytest.approx([25, 10, 10, 20], abs=0.1)
    assert samples.drawn(ellipse).sum() == pytest.approx(np.pi * 50, rel=0.05)
    assert box["bbox"] == pytest.approx([25, 5, 10, 20]) and "segmentation" not in box
    assert "the type 'polyline'" in findings.lines[0]


def test_stuff_of_panoptic_data_is_left_out(tmp_path):
    _, findings = read(samples.panoptic(tmp_path / "panoptic"))
    assert "segments have no category of things" in findings.lines[0]


def test_yolo_without_a_yaml_and_an_image_without_labels(tmp_path):
    folder = samples.yolo_traced(tmp_path / "yolo")
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("box\nplate\n")
    (folder / "train/labels/train_1.txt").unlink()
    content = read(folder)[0].splits["train"].content
    assert [one["name"] for one in content["categories"]] == ["box", "plate"]
    assert len(content["images"]) == 4 and len(content["annotations"]) == 6
