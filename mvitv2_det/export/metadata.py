"""What the exported file of a detector or a backbone says of itself: its input, and its classes."""

import json
from dataclasses import asdict
from typing import Any

from detectron2.config import instantiate
from detectron2.data.transforms import ResizeShortestEdge
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from ..exported_input import ENTRY, ExportedInput
from ..predict.classes import known_classes, own_classes


def metadata_of(
    cfg: DictConfig, model: Any, part: str, size: tuple[int, int] | None
) -> dict[str, str]:
    """Texts by name for :func:`mvitv2_det.export.export_model`.

    Args:
        cfg: the config of the model.
        model: a detector of it.
        part: ``detector`` or ``backbone``.
        size: (H, W) of the images of the file; None if it takes any.

    Returns:
        ``input``, the json of an :class:`~mvitv2_det.exported_input.ExportedInput`, unless the
        config's evaluation does more than to resize the short side; of a detector ``classes``, the
        json of a list of their names.
    """
    made = {}
    if part == "detector":
        count, classes = model.roi_heads.num_classes, own_classes(cfg)
        if classes is None or len(classes.names) != count:
            classes = known_classes(cfg, count)
        made["classes"] = json.dumps(classes.names, ensure_ascii=False)
    resize = _resize(cfg)
    if resize is not None and hasattr(model, "pixel_mean"):
        short_side, long_side = resize
        input = ExportedInput(
            short_side,
            long_side,
            size,
            getattr(model, "input_format", None) or "RGB",
            tuple(model.pixel_mean.flatten().tolist()),
            tuple(model.pixel_std.flatten().tolist()),
            normalised=part == "backbone",
        )
        made[ENTRY] = json.dumps(asdict(input))
    return made


def _resize(cfg: DictConfig) -> tuple[int, int] | None:
    """The short and the long side of evaluation, if that is all that it does to an image."""
    if OmegaConf.select(cfg, "dataloader.test.mapper") is None:
        return None
    mapper = instantiate(cfg.dataloader.test.mapper)
    steps = getattr(getattr(mapper, "augmentations", None), "augs", [])
    if len(steps) != 1 or type(steps[0]) is not ResizeShortestEdge:
        return None
    sides = set(steps[0].short_edge_length)
    if len(sides) != 1 or steps[0].interp != Image.Resampling.BILINEAR:
        return None
    return int(sides.pop()), int(steps[0].max_size)
