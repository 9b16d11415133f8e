"""Selection of a run's data: the user's own in COCO's format, or a data set of Detectron2."""

import json
import logging
import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from omegaconf import DictConfig, OmegaConf

from ..errors import UserError, naming_unwritable
from ..whole_files import written_whole
from .coco_format import CocoSummary, check_coco_data, check_same_categories

logger = logging.getLogger(__name__)


def prepare_datasets(cfg: DictConfig, *, training: bool, check: bool = True) -> None:
    """Prepares a config for the user's own data, if ``cfg.dataset`` names any.

    Registers the splits with Detectron2, and sets the data sets of the loaders, the number of
    classes and the format of the masks.

    Args:
        cfg: the config, which is changed in place.
        training: whether the training split is needed in addition to the validation split.
        check: whether to check the json files and images; one process of a run is enough.

    Raises:
        UserError: data are missing or wrong; see :mod:`mvitv2_det.data.coco_format`.
    """
    splits = ("train", "val") if training else ("val",)
    own = cfg.get("dataset") or {}
    paths = [f"{split}_{kind}" for split in ("train", "val") for kind in ("json", "images")]
    given = [key for key in paths if own.get(key)]
    if not given:
        for split in splits:
            _check_known(_dataset_config(cfg, split).names)
        return
    for split in splits:
        for key in (f"{split}_json", f"{split}_images"):
            if not own.get(key):
                raise UserError(f"dataset.{key} is missing: {', '.join(given)} need it beside them")
    if check:
        summaries = {split: _check_own(cfg, split) for split in splits}
        _adapt(cfg, summaries)
    for split in splits:
        name = _register(own[f"{split}_json"], own[f"{split}_images"])
        _dataset_config(cfg, split).names = name


def _dataset_config(cfg: DictConfig, split: str) -> DictConfig:
    return cfg.dataloader[{"train": "train", "val": "test"}[split]].dataset


def _check_known(name: str) -> None:
    """Checks that Detectron2's catalog has a data set of this name, and that its files exist."""
    if name not in DatasetCatalog.list():
        raise UserError(
            f"there is no data set {name!r}: give dataset.train_json and the other paths"
        )
    metadata = MetadataCatalog.get(name)
    for path in (metadata.get("json_file"), metadata.get("image_root")):
        if path and "://" not in path and not os.path.exists(path):
            raise UserError(
                f"data set {name!r} lacks {path}: set DETECTRON2_DATASETS to the folder that "
                f"holds coco/, or give dataset.train_json, dataset.train_images, "
                f"dataset.val_json and dataset.val_images"
            )


def _check_own(cfg: DictConfig, split: str) -> CocoSummary:
    """Checks a split; a copy beside the run's results replaces a file with odd annotations."""
    key = f"{split}_json"
    odd = cfg.dataset.get("odd_annotations", "repair")
    found = check_coco_data(cfg.dataset[key], cfg.dataset[f"{split}_images"], odd)
    for line in found.odd:
        logger.warning("%s", line)
    if found.repaired is not None:
        copy = Path(cfg.train.output_dir) / f"{split}_annotations.json"
        with naming_unwritable(copy):
            copy.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(copy) as unfinished:
                unfinished.write_text(json.dumps(found.repaired), encoding="utf-8")
        logger.warning("%s is what is used", copy)
        cfg.dataset[key] = str(copy)
    return found


def _adapt(cfg: DictConfig, summaries: dict[str, CocoSummary]) -> None:
    """Sets the values of the config that depend on the data, before the model is built."""
    val = summaries["val"]
    if "train" in summaries:
        train = summaries["train"]
        check_same_categories(cfg.dataset.train_json, train, cfg.dataset.val_json, val)
        mapper = cfg.dataloader.train.mapper
        if mapper.get("use_instance_mask") and not train.has_masks:
            raise UserError(
                f"{cfg.dataset.train_json} has instances without 'segmentation'; to train boxes "
                f"alone add model.roi_heads.mask_in_features=null "
                f"dataloader.train.mapper.use_instance_mask=false"
            )
        if train.has_rle:
            mapper.instance_mask_format = "bitmask"
    tasks = OmegaConf.select(cfg, "dataloader.evaluator.tasks")
    finds_masks = OmegaConf.select(cfg, "model.roi_heads.mask_in_features") is not None
    if finds_masks and not val.has_masks and (tasks is None or "segm" in tasks):
        raise UserError(
            f"{cfg.dataset.val_json} has instances without 'segmentation', by which masks are "
            f"scored; to score boxes alone add +dataloader.evaluator.tasks=[bbox]"
        )
    # Saved with the run, so that prediction can name the classes without the json file.
    cfg.dataset.categories = dict(val.categories)
    if OmegaConf.select(cfg, "model.roi_heads.num_classes") is not None:
        cfg.model.roi_heads.num_classes = len(val.categories)


def _register(json_file: str, image_folder: str) -> str:
    """Registers a split under the path of its json file, and replaces an earlier registration."""
    if json_file in DatasetCatalog.list():
        DatasetCatalog.remove(json_file)
        MetadataCatalog.remove(json_file)
    register_coco_instances(json_file, {}, json_file, image_folder)
    return json_file
