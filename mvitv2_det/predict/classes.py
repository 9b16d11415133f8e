"""The classes of a config's model: their names and the category ids that data know them by."""

import json
import logging
import os
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from ..errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Classes:
    """The classes that a model numbers 0, 1, ….

    Attributes:
        names: one for each class, such as ``person``.
        ids: the category id of each class in COCO's format.
    """

    names: list[str]
    ids: list[int]

    @classmethod
    def of(cls, categories: dict[int, str]) -> "Classes":
        """Makes classes of COCO's categories, which Detectron2 numbers in order of their ids."""
        ids = sorted(categories)
        return cls([str(categories[index]) for index in ids], ids)

    @classmethod
    def numbered(cls, count: int) -> "Classes":
        """Makes classes of which only the number is known."""
        return cls([f"class {index}" for index in range(count)], list(range(count)))

    def as_coco(self) -> list[dict[str, Any]]:
        """Gives the list ``categories`` of COCO's format."""
        return [{"id": i, "name": name} for i, name in zip(self.ids, self.names, strict=True)]


def own_classes(cfg: DictConfig) -> Classes | None:
    """Finds the classes of the user's own data; None if the config names no such data.

    They are in ``dataset.categories`` (names by category id), or in the json of the validation
    split, ``dataset.val_json``.

    Raises:
        UserError: the categories are there but malformed, or their file cannot be read.
    """
    categories = OmegaConf.select(cfg, "dataset.categories")
    if categories:
        return Classes.of(_checked(categories, "dataset.categories"))
    json_file = OmegaConf.select(cfg, "dataset.val_json")
    if not json_file:
        return None
    if not os.path.exists(json_file):
        logger.warning(
            "There is no %s (dataset.val_json) to read the names of the classes from: they are "
            "numbered.",
            json_file,
        )
        return None
    try:
        with open(json_file, encoding="utf-8") as file:
            categories = {c["id"]: c["name"] for c in json.load(file)["categories"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read the categories of {json_file}: {error!r}") from error
    return Classes.of(_checked(categories, json_file))


def known_classes(cfg: DictConfig, count: int) -> Classes:
    """Finds the classes of the data set that the config tests on in Detectron2's catalogs.

    The catalogs know COCO's names even without its files. If the data set is unknown, or has
    another number of classes than the model, the classes are numbered.

    Args:
        cfg: the config; it is not changed.
        count: number of the model's classes.
    """
    name = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    if not isinstance(name, str) or name not in DatasetCatalog.list():
        return Classes.numbered(count)
    metadata = MetadataCatalog.get(name)
    names = metadata.get("thing_classes", [])
    if len(names) != count:
        return Classes.numbered(count)
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id", {})
    ids = {index: category for category, index in contiguous.items()}
    return Classes(list(names), [ids.get(index, index) for index in range(count)])


def _checked(categories: DictConfig | dict[Any, Any], culprit: str) -> dict[int, str]:
    if not hasattr(categories, "keys") or not all(isinstance(key, int) for key in categories):
        raise UserError(f"{culprit}: expected names by category id, such as {{1: cat, 2: dog}}")
    return dict(categories.items())
