"""The large image that is made of nuclei's images, and what is found in it."""

import json

import numpy as np
import pycocotools.mask as coco_mask
from PIL import Image

from mvitv2_det.visualize.masks import MaskPart
from projects.nuclei.large_image import CELL, compare, make


def annotation(image: int, x: int, y: int, side: int) -> dict:
    part = MaskPart(y, x, np.ones((side, side), np.uint8))
    return {
        "id": 10 * image + x, "image_id": image, "category_id": 1, "area": side * side,
        "bbox": [x, y, side, side], "iscrowd": 0, "segmentation": part.rle(CELL, CELL),
    }  # fmt: skip


def test_cells_side_by_side_and_what_is_found_of_them(tmp_path):
    """Two images in four cells of 600 pixels; a detection over two cells is found once."""
    for number in (1, 2):
        Image.new("RGB", (CELL, CELL), (100 * number, 0, 0)).save(tmp_path / f"{number}.png")
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": CELL, "height": CELL} for n in (1, 2)
        ],
        "annotations": [
            annotation(1, 10, 20, 30), annotation(1, CELL - 20, 100, 20), annotation(2, 50, 60, 8)
        ],
        "categories": [{"id": 1, "name": "nucleus"}],
    }  # fmt: skip
    (tmp_path / "val.json").write_text(json.dumps(content))
    make(tmp_path / "val.json", tmp_path, 600, tmp_path / "large")
    picture = np.asarray(Image.open(tmp_path / "large" / "image.png"))
    assert picture.shape == (600, 600, 3) and not picture[2 * CELL :].any()
    assert picture[::CELL, ::CELL, 0][:2, :2].tolist() == [[100, 200], [100, 200]]
    truth = json.loads((tmp_path / "large" / "annotations.json").read_text())["annotations"]
    assert len(truth) == 6
    decoded = coco_mask.decode(truth[1]["segmentation"])
    assert decoded.shape == (600, 600) and decoded[100:120, CELL - 20 : CELL].all()
    assert decoded.sum() == 400

    def found(annotations: list[dict], shift: int = 0) -> str:
        results = []
        for one in annotations:
            x, y, side, _ = one["bbox"]
            part = MaskPart(y, x + shift, np.ones((side, side), np.uint8))
            box = [x + shift, y, side, side]
            results.append({**one, "score": 0.9, "bbox": box, "segmentation": part.rle(600, 600)})
        (tmp_path / "results.json").write_text(json.dumps(results))
        return compare(tmp_path / "large" / "annotations.json", tmp_path)

    assert found(truth) == "6 of 6 found, in 6 detections"
    assert found(truth[1:3], shift=5) == "1 of 6 found, in 2 detections"
    assert found(truth[:1] * 2) == "1 of 6 found, in 2 detections"
    assert found([]) == "0 of 6 found, in 0 detections"
