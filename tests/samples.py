"""Data sets of a few small images in every format that is read."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SAMPLES = Path(__file__).parent / "data" / "samples"
WIDTH, HEIGHT = 64, 48


def source(split: str) -> dict:
    """The COCO json that the other samples of a split were made from."""
    return json.loads((SAMPLES / "coco" / f"instances_{split}.json").read_text())


def write_images(folder: Path, *splits: str) -> None:
    """Writes images of the right names and size."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split in splits:
        for image in source(split)["images"]:
            pixels = rng.integers(0, 80, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            pixels[10:30, 20:50] = 220
            Image.fromarray(pixels).save(folder / image["file_name"])


def _copied(name: str, folder: Path) -> Path:
    shutil.copytree(SAMPLES / name, folder)
    return folder


def coco(folder: Path) -> Path:
    (folder / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copy(SAMPLES / "coco" / f"instances_{split}.json", folder / "annotations")
        write_images(folder / f"images/{split}", split)
    return folder


def roboflow(folder: Path) -> Path:
    """As Roboflow exports COCO: a folder for each split, and a category that groups the others."""
    for split, name in (("train", "train"), ("val", "valid")):
        write_images(folder / name, split)
        content = source(split)
        for one in content["categories"]:
            one["supercategory"] = "things"
        group = {"id": 0, "name": "things", "supercategory": "none"}
        content["categories"].insert(0, group)
        (folder / name / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


def lvis(folder: Path) -> Path:
    """LVIS v1: no file names but addresses, no iscrowd, and lists of categories by image."""
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        content = source(split)
        for image in content["images"]:
            name = image.pop("file_name")
            image["coco_url"] = f"http://images.cocodataset.org/{split}2017/{name}"
            image.update(not_exhaustive_category_ids=[], neg_category_ids=[])
        for one in content["annotations"]:
            del one["iscrowd"]
        for one in content["categories"]:
            one.update(frequency="f", synset=f"{one['name']}.n.01", synonyms=[one["name"]])
        write_images(folder / f"{split}2017", split)
        (folder / f"lvis_v1_{split}.json").write_text(json.dumps(content))
    return folder


def unsplit(folder: Path) -> Path:
    """A json file and its images, of which no part is for validation."""
    write_images(folder / "images", "train")
    (folder / "all.json").write_text(json.dumps(source("train")))
    return folder / "all.json"


def panoptic(folder: Path) -> Path:
    """Things of the source's masks, where they do not overlap, on a ground of stuff."""
    for split in ("train", "val"):
        content = source(split)
        write_images(folder / f"{split}2017", split)
        masks = folder / "annotations" / f"panoptic_{split}2017"
        masks.mkdir(parents=True)
        annotations = []
        for image in content["images"]:
            numbers = np.full((HEIGHT, WIDTH), 700_000)
            segments = [{"id": 700_000, "category_id": 9, "iscrowd": 0}]
            for one in content["annotations"]:
                if one["image_id"] == image["id"]:
                    number = 65_536 * one["id"] + 300
                    numbers[drawn(one).astype(bool)] = number
                    segments.append({"id": number, "category_id": one["category_id"], "iscrowd": 0})
            name = Path(image["file_name"]).with_suffix(".png").name
            colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65_536], -1)
            Image.fromarray(colours.astype(np.uint8)).save(masks / name)
            annotations.append(
                {"image_id": image["id"], "file_name": name, "segments_info": segments}
            )
        categories = [{**one, "isthing": 1} for one in content["categories"]]
        categories.append({"id": 9, "name": "ground", "isthing": 0})
        content.update(annotations=annotations, categories=categories)
        masks.with_suffix(".json").write_text(json.dumps(content))
    return folder


def yolo(folder: Path) -> Path:
    _copied("yolo", folder)
    for split in ("train", "val"):
        write_images(folder / f"images/{split}", split)
    return folder


def yolo_polygons(folder: Path) -> Path:
    """As Roboflow exports YOLO: folders with images and labels; data.yaml's paths lead astray."""
    for split, name in (("train", "train"), ("val", "valid")):
        content = source(split)
        write_images(folder / name / "images", split)
        (folder / name / "labels").mkdir()
        for image in content["images"]:
            lines = [
                f"{one['category_id'] - 1} "
                + " ".join(
                    repr(value / (HEIGHT if place % 2 else WIDTH))
                    for place, value in enumerate(one["segmentation"][0])
                )
                for one in content["annotations"]
                if one["image_id"] == image["id"]
            ]
            file = folder / name / "labels" / f"{Path(image['file_name']).stem}.txt"
            file.write_text("\n".join(lines) + "\n")
    (folder / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: [box, plate]\n"
    )
    return folder


def yolo_traced(folder: Path) -> Path:
    _copied("yolo_polygons", folder)
    write_images(folder / "train" / "images", "train")
    return folder


def voc(folder: Path) -> Path:
    _copied("voc", folder)
    write_images(folder / "JPEGImages", "train", "val")
    return folder


def voc_traced(folder: Path) -> Path:
    _copied("voc_polygons", folder)
    write_images(folder, "train")
    return folder


def labelme(folder: Path) -> Path:
    _copied("labelme", folder)
    write_images(folder, "train")
    return folder


def cvat(folder: Path) -> Path:
    _copied("cvat", folder)
    write_images(folder / "images", "train", "val")
    return folder


def with_every_fault(folder):
    """Data with all that a trial of the project has stumbled over."""
    for split in ("train", "val"):
        write_images(folder / split, split)
        content = source(split)
        annotations = content["annotations"]
        for one in annotations:
            del one["area"], one["iscrowd"]
            one.update(id=str(one["id"]), image_id=str(one["image_id"]))
            one["category_id"] = str(one["category_id"])
        sound = annotations[1]["segmentation"][0]
        annotations[0]["segmentation"] = [[1, 2, 3, 4]]
        annotations[1].update(segmentation=[[1, 2, 3, 4], sound], iscrowd=False)
        annotations[2]["segmentation"] = []
        annotations[3]["bbox"] = [-10, 5, 40, 10]
        for one in content["categories"]:
            one.update(id=str(one["id"]), supercategory="things")
        content["categories"].insert(0, {"id": "0", "name": "things", "supercategory": "none"})
        if split == "val":
            content["categories"].pop()
            content["annotations"] = [one for one in annotations if one["category_id"] != "2"]
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


# By name: what writes it, and the format that it is.
ALL = {
    "coco": (coco, "coco"),
    "roboflow": (roboflow, "coco"),
    "lvis": (lvis, "coco"),
    "unsplit": (unsplit, "coco"),
    "panoptic": (panoptic, "panoptic"),
    "yolo": (yolo, "yolo"),
    "yolo_polygons": (yolo_polygons, "yolo"),
    "yolo_traced": (yolo_traced, "yolo"),
    "voc": (voc, "voc"),
    "voc_traced": (voc_traced, "voc"),
    "labelme": (labelme, "labelme"),
    "cvat": (cvat, "cvat"),
}
BOXES_ALONE = ("yolo", "voc")  # formats whose samples have no masks


def drawn(annotation: dict) -> np.ndarray:
    """The mask (H, W) of an annotation, by pycocotools."""
    mask = annotation["segmentation"]
    if isinstance(mask, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(mask, HEIGHT, WIDTH))
    return coco_mask.decode(mask)
