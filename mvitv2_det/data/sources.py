"""A run's own data in whatever format, as the json files of COCO's format that it uses."""

import json
import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ..errors import UserError, naming_unwritable
from ..whole_files import written_whole
from .findings import Findings
from .formats import Split, read_data

logger = logging.getLogger(__name__)

# What counts where a config does not have the key.
DEFAULTS = {"format": None, "val_share": 0.2, "split_seed": 0}


def use_sources(cfg: DictConfig, *, training: bool) -> None:
    """Sets the json files and folders of images from ``dataset.train`` and ``dataset.val``.

    Either is a file or folder of any format of :mod:`.formats`. ``dataset.train`` alone is both:
    its split for validation, or a share of its images. What has to be converted is written into
    the run's folder. The two keys are null afterwards, so that the config that is saved with the
    run names the data that it used.

    Args:
        cfg: the config, which is changed in place.
        training: whether the split for training is needed.

    Raises:
        UserError: the data cannot be read.
    """
    own = cfg.get("dataset") or {}
    wanted: dict[str, Any] = {split: own.get(split) for split in ("train", "val") if own.get(split)}
    if not wanted:
        return
    options = {key: own.get(key) for key in DEFAULTS if own.get(key) is not None}
    settings: dict[str, Any] = {**DEFAULTS, **options}
    _check_settings(settings)
    odd = own.get("odd_annotations", "repair")
    if "train" in wanted and (training or "val" not in wanted):
        splits = _read(wanted["train"], odd, settings, divided="val" not in wanted)
        if training:
            _use(cfg, "train", splits["train"])
        if "val" not in wanted:
            _use(cfg, "val", splits["val"])
    if "val" in wanted:
        _use(cfg, "val", _read(wanted["val"], odd, settings, divided=False, split="val")["val"])
    for split in wanted:
        cfg.dataset[split] = None


def _check_settings(settings: dict[str, Any]) -> None:
    share, seed = settings["val_share"], settings["split_seed"]
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise UserError(f"dataset.val_share must be a number between 0 and 1, got {share!r}")
    if type(seed) is not int:
        raise UserError(f"dataset.split_seed must be a whole number, got {seed!r}")


def _read(
    path: Any, odd: str, settings: dict[str, Any], *, divided: bool, split: str = "train"
) -> dict[str, Split]:
    """Reads a source.

    Args:
        path: of it.
        odd: what is done with what is wrong; see :class:`.findings.Findings`.
        settings: of the format and the split.
        divided: whether it is to give both splits.
        split: the one that it is to give otherwise.
    """
    if not isinstance(path, str):
        raise UserError(f"dataset.{split} must be a file or folder, got {path!r}")
    findings = Findings(path, odd)
    data = read_data(path, findings, settings["format"])
    findings.check()
    for line in findings.lines:
        logger.warning("%s", line)
    if divided:
        splits, said = data.divided(settings["val_share"], settings["split_seed"])
        if said:
            logger.warning("%s", said)
        return splits
    return {split: data.split(split)}


def _use(cfg: DictConfig, split: str, data: Split) -> None:
    """Sets the file and the folder of a split; writes the file if there is none."""
    file = data.json_file
    if file is None:
        file = Path(cfg.train.output_dir) / f"{split}_annotations.json"
        write_coco(file, data.content)
        logger.warning("%s has the %s data in COCO's format", file, split)
    cfg.dataset[f"{split}_json"] = str(file)
    cfg.dataset[f"{split}_images"] = str(data.images)


def write_coco(file: Path, content: dict[str, Any]) -> None:
    """Writes the content of a COCO json file.

    Raises:
        UserError: it cannot be written.
    """
    with naming_unwritable(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as unfinished:
            unfinished.write_text(json.dumps(content), encoding="utf-8")
