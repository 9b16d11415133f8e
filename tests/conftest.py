"""Helpers and small data for all tests."""

import json
import logging
import os
from functools import partial
from pathlib import Path

import torch

if not torch.cuda.is_available():
    # Triton's kernels then run in its interpreter, on the CPU. It must be said before Triton, which
    # some of the imports below load, makes its own functions.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import pytest
from detectron2.utils.logger import setup_logger
from imagenet_runs import CLASSES, write_image
from PIL import Image

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def fresh_loggers():
    """For tests that set logging up: handlers write to the streams of the test that made them."""
    yield
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "mvitv2_det"):
        for handler in list(logging.getLogger(name).handlers):
            logging.getLogger(name).removeHandler(handler)
            handler.close()


@pytest.fixture(autouse=True)
def same_log_levels():
    """Commands that quieten a logger do so for their own process, which tests share."""
    loggers = [logging.getLogger(name) for name in list(logging.Logger.manager.loggerDict)]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def shared_data():
    """Finds a folder of real data beside the checkout, or skips, saying which is missing."""

    def find(name: str) -> Path:
        folder = SHARED_DATA / name
        if not folder.is_dir():
            pytest.skip(f"no {name}/ beside the checkout")
        return folder

    return find


@pytest.fixture
def without_memory(monkeypatch):
    """Models are built without memory for their parameters, on the meta device."""
    # Detectron2 and older releases of timm read their drop path rates out of a tensor.
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        yield


def write_coco(folder: Path, split: str, num_images: int, *, rle: bool = False) -> dict:
    """Writes images with one bright rectangle of one of two classes each; returns the json."""
    images_folder = folder / split
    images_folder.mkdir(parents=True)
    content = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": 3, "name": "box"}, {"id": 7, "name": "plate"}],
    }
    rng = np.random.default_rng(0)
    for number in range(1, num_images + 1):
        name = f"{number}.png"
        pixels = rng.integers(0, 80, (48, 64, 3), dtype=np.uint8)
        pixels[10:30, 20:50] = 220
        Image.fromarray(pixels).save(images_folder / name)
        content["images"].append({"id": number, "file_name": name, "width": 64, "height": 48})
        polygon = [[20, 10, 50, 10, 50, 30, 20, 30]]
        counts = {"size": [48, 64], "counts": [20 * 48 + 10] + [20, 28] * 29 + [20, 18 + 14 * 48]}
        content["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": 3 if number % 2 else 7,
                "bbox": [20, 10, 30, 20],
                "area": 600,
                "iscrowd": 0,
                "segmentation": counts if rle else polygon,
            }
        )
    (folder / f"{split}.json").write_text(json.dumps(content))
    return content


@pytest.fixture
def coco_folder(tmp_path):
    """A folder with train.json, train/, val.json and val/: four and two images."""
    write_coco(tmp_path, "train", 4)
    write_coco(tmp_path, "val", 2)
    return tmp_path


def dataset_overrides(folder: Path) -> list[str]:
    return [
        f"dataset.{split}_{kind}={folder}/{split}{ending}"
        for split in ("train", "val")
        for kind, ending in (("json", ".json"), ("images", ""))
    ]


# Any config of the project with these trains in seconds on a CPU.
TINY = [
    "train.device=cpu",
    "train.init_checkpoint=",
    "train.max_iter=2",
    "train.report=false",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "model.backbone.out_channels=8",
    "model.roi_heads.batch_size_per_image=8",
    "model.roi_heads.mask_head.conv_dims=[8,8]",
    "model.proposal_generator.batch_size_per_image=16",
    "model.proposal_generator.pre_nms_topk=[50,50]",
    "model.proposal_generator.post_nms_topk=[20,20]",
]


def tiny_overrides(cfg) -> list[str]:
    """TINY, and what depends on the config: a narrow and short backbone, small images."""
    bottom_up = cfg.model.backbone.bottom_up
    augmentations = cfg.dataloader.train.mapper.augmentations
    overrides = [*TINY, f"model.backbone.bottom_up.embed_dim={8 * bottom_up.num_heads}"]
    overrides += [
        "model.backbone.bottom_up.depth=4",
        "model.backbone.bottom_up.last_block_indexes=[0,1,2,3]",
    ]
    overrides += ["dataloader.test.mapper.augmentations.0.short_edge_length=48"]
    if cfg.model.backbone.get("square_pad"):
        overrides.append("model.backbone.square_pad=64")
    for index, augmentation in enumerate(augmentations):
        prefix = f"dataloader.train.mapper.augmentations.{index}"
        if "short_edge_length" in augmentation:
            overrides.append(f"{prefix}.short_edge_length=[48,48]")
        if "target_height" in augmentation:
            overrides += [f"{prefix}.target_height=64", f"{prefix}.target_width=64"]
        if "crop_size" in augmentation:
            overrides.append(f"{prefix}.crop_size=[64,64]")
        if "tfm_or_aug" in augmentation:
            overrides.append(f"{prefix}.prob=0.0")
    return overrides


@pytest.fixture
def photos(tmp_path):
    """A folder with train/ and val/, of three classes with four and two images."""
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate(CLASSES):
            for index in range(count):
                path = tmp_path / "photos" / split / name / f"{index}.png"
                write_image(path, 100 * number, index)
    return tmp_path / "photos"


@pytest.fixture
def overrides(photos):
    """Two steps of a tiny network on the CPU."""
    return [
        f"dataset.train={photos}",
        f"train.output_dir={photos.parent}/out",
        "model.variant.embed_dim=8",
        "model.variant.blocks=[1,1,1,1]",
        "dataloader.train.total_batch_size=6",
        "dataloader.train.num_workers=0",
        "recipe.epochs=1",
        "recipe.eval_epochs=1",
        "train.log_period=1",
    ]
