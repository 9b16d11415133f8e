"""Selection of a run's data: the user's own, or a data set of Detectron2."""

import logging
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from omegaconf import DictConfig, OmegaConf

from ..errors import UserError
from .categories import with_categories_of, without_unused_parents
from .coco_format import CocoSummary, check_coco_data
from .sources import use_sources, write_coco

logger = logging.getLogger(__name__)

_FEDERATED_CLASSES = 50  # Detectron2's default


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
    if check:
        use_sources(cfg, training=training)
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
        for split, found in _with_same_categories(cfg, summaries).items():
            _use(cfg, split, found)
            summaries[split] = found
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
    """Checks a split."""
    own = cfg.dataset
    masks = OmegaConf.select(cfg, "dataloader.train.mapper.use_instance_mask", default=True)
    found = check_coco_data(
        own[f"{split}_json"],
        own[f"{split}_images"],
        own.get("odd_annotations", "repair"),
        masks=bool(masks),
    )
    for line in found.odd:
        logger.warning("%s", line)
    return found


def _with_same_categories(
    cfg: DictConfig, summaries: dict[str, CocoSummary]
) -> dict[str, CocoSummary]:
    """Gives all splits the categories of the training, which are those of an evaluated run, too."""
    kept, lines = without_unused_parents(list(summaries.values()))
    summaries = dict(zip(summaries, kept, strict=True))
    categories: list[dict[str, Any]]
    if train := summaries.get("train"):
        categories, source = train.content["categories"], train.json_file
    else:
        names = cfg.dataset.get("categories") or {}
        categories = [{"id": one, "name": names[one]} for one in names]
        source = "dataset.categories, those of the training"
    if categories:
        summaries["val"], more = with_categories_of(summaries["val"], categories, source)
        lines += more
    for line in lines:
        logger.warning("%s", line)
    return summaries


def _use(cfg: DictConfig, split: str, found: CocoSummary) -> None:
    """Uses a copy beside the run's results in place of a file that had to be changed."""
    if found.repaired is None:
        return
    copy = Path(cfg.train.output_dir) / f"{split}_annotations.json"
    write_coco(copy, found.repaired)
    logger.warning("%s is what is used", copy)
    cfg.dataset[f"{split}_json"] = str(copy)


def _adapt(cfg: DictConfig, summaries: dict[str, CocoSummary]) -> None:
    """Sets the values of the config that depend on the data, before the model is built."""
    if "train" in summaries:
        train = summaries["train"]
        mapper = cfg.dataloader.train.mapper
        if mapper.get("use_instance_mask") and not train.has_masks:
            raise UserError(
                f"{train.json_file} has instances without 'segmentation'; to train boxes "
                f"alone add model.roi_heads.mask_in_features=null "
                f"dataloader.train.mapper.use_instance_mask=false"
            )
        if train.has_rle:
            mapper.instance_mask_format = "bitmask"
    tasks = OmegaConf.select(cfg, "dataloader.evaluator.tasks")
    finds_masks = OmegaConf.select(cfg, "model.roi_heads.mask_in_features") is not None
    if finds_masks and not summaries["val"].has_masks and (tasks is None or "segm" in tasks):
        raise UserError(
            f"{cfg.dataset.val_json} has instances without 'segmentation', by which masks are "
            f"scored; to score boxes alone add +dataloader.evaluator.tasks=[bbox]"
        )
    # Saved with the run, so that prediction can name the classes without the json file.
    categories = summaries["val"].categories
    cfg.dataset.categories = categories
    if OmegaConf.select(cfg, "model.roi_heads.num_classes") is not None:
        cfg.model.roi_heads.num_classes = len(categories)
        for predictor in cfg.model.roi_heads.get("box_predictors") or []:
            if predictor.get("use_fed_loss"):  # it draws no more classes than there are
                predictor.fed_loss_num_classes = min(_FEDERATED_CLASSES, len(categories))


def _register(json_file: str, image_folder: str) -> str:
    """Registers a split under the path of its json file, and replaces an earlier registration."""
    if json_file in DatasetCatalog.list():
        DatasetCatalog.remove(json_file)
        MetadataCatalog.remove(json_file)
    register_coco_instances(json_file, {}, json_file, image_folder)
    return json_file
