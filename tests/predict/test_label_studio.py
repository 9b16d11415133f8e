"""Tasks of Label Studio: their polygons and boxes are what was found."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from small_detector import save_detector

from mvitv2_det.commands import main
from mvitv2_det.predict.label_studio import label_studio_config, label_studio_task
from mvitv2_det.visualize.masks import MaskPart

HEIGHT, WIDTH = 40, 80


def task(**annotation):
    found = [{"bbox": [8, 10, 24, 30], "category_id": 1, "score": 0.75, **annotation}]
    return label_studio_task(found, ["a", "b & c"], "x/a b.png", HEIGHT, WIDTH)


def test_boxes():
    made = task()
    assert made["data"] == {"image": "/data/local-files/?d=x/a%20b.png"}
    (prediction,) = made["predictions"]
    (result,) = prediction["result"]
    assert (result["type"], result["score"], prediction["score"]) == ("rectanglelabels", 0.75, 0.75)
    assert result["value"] == dict(
        x=10, y=25, width=20, height=50, rotation=0, rectanglelabels=["b & c"]
    )


def test_polygons_are_the_masks():
    """Exactly where outlines are straight, within half a pixel around them elsewhere."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 8:24] = 1
    mask[5:8, 60:79] = 1
    (prediction,) = task(segmentation=MaskPart.of(mask))["predictions"]
    drawn = np.zeros_like(mask)
    assert len(prediction["result"]) == 2
    for result in prediction["result"]:
        assert result["value"]["polygonlabels"] == ["b & c"]
        points = np.array(result["value"]["points"]) * [WIDTH / 100, HEIGHT / 100]
        rle = coco_mask.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH)[0]
        drawn |= coco_mask.decode(rle)
    assert (drawn == mask).all()


def test_the_interface_names_the_classes():
    tree = ElementTree.fromstring(label_studio_config(["a", 'b & "c"'], masks=True))
    assert [label.get("value") for label in tree.iter("Label")] == ["a", 'b & "c"']
    assert tree.find("PolygonLabels").get("toName") == tree.find("Image").get("name")
    assert "<RectangleLabels" in label_studio_config(["a"], masks=False)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("detector"))


def test_the_command(detector, tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "1.png")
    options = ["--config", detector.config, "--weights", detector.weights, "--device", "cpu"]
    options += ["--score-threshold", "0.05", "--format", "label-studio", "--no-overlays"]
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path / "1.png"), *options, "--output", str(out)]) == 0
    (made,) = json.loads((out / "label_studio.json").read_text())
    results = json.loads((out / "results.json").read_text())
    numbers = {one["id"].partition("-")[0] for one in made["predictions"][0]["result"]}
    assert 3 < len(numbers) <= len(results)
    assert "<PolygonLabels" in (out / "label_studio.xml").read_text()
    (tmp_path / "1.mp4").write_text("")
    assert main(["predict", str(tmp_path / "1.mp4"), *options, "--output", str(out)]) == 2
    assert "1.mp4 is a video" in capfd.readouterr().err
