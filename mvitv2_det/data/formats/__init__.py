"""Data sets in other formats than COCO's, read as COCO's content.

Each format is a module with ``find``, which tells whether a file or folder is of it, and ``read``.
"""

import os.path
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from ...errors import UserError
from ..findings import Findings
from . import coco, cvat, labelme, panoptic, voc, yolo
from .building import Split
from .files import WHOLE
from .splitting import split_by_image

__all__ = ["FORMATS", "WHOLE", "Data", "Split", "read_data", "split_by_image"]

FORMATS: Mapping[str, ModuleType] = {
    "coco": coco,
    "panoptic": panoptic,
    "yolo": yolo,
    "voc": voc,
    "labelme": labelme,
    "cvat": cvat,
}


def read_data(path: str | Path, findings: Findings, format: str | None = None) -> "Data":
    """Reads a data set.

    Args:
        path: the file or folder.
        findings: what is wrong or left out is noted here.
        format: one of :data:`FORMATS`; by default it is found out.

    Raises:
        UserError: there is no such file, its format is unknown, or it cannot be read at all.
    """
    path = Path(os.path.abspath(path))
    if not path.exists():
        raise UserError(f"there is no {path}")
    if format is not None and format not in FORMATS:
        raise UserError(f"the format must be {', '.join(FORMATS)}, got {format!r}")
    names = FORMATS if format is None else (format,)
    found = {name: start for name in names if (start := FORMATS[name].find(path)) is not None}
    if not found:
        raise UserError(
            f"{path} is in none of the known formats"
            if format is None
            else f"{path} is not in the format {format!r}"
        )
    if len(found) > 1:
        raise UserError(f"{path} could be {' or '.join(found)}: say which")
    ((name, start),) = found.items()
    splits = FORMATS[name].read(start, findings)
    if not splits and not findings.faults:
        raise UserError(f"{path} ({name}) has no image that can be read")
    return Data(name, path, splits)


class Data:
    """A data set that was read.

    Args:
        format: its format.
        path: where it is.
        splits: its splits; one of the name :data:`WHOLE` if it has none.
    """

    def __init__(self, format: str, path: Path, splits: dict[str, Split]) -> None:
        self.format = format
        self.path = path
        self.splits = splits

    def split(self, name: str) -> Split:
        """The split of a name, or all if the data are not split.

        Raises:
            UserError: there are splits, but none of this name.
        """
        if len(self.splits) == 1:
            return next(iter(self.splits.values()))
        if name not in self.splits:
            raise UserError(f"{self.path} has no split {name!r}, but {', '.join(self.splits)}")
        return self.splits[name]

    def divided(self, share: float, seed: int) -> tuple[dict[str, Split], str]:
        """The splits, one for training and one for validation among them, and how they came about.

        Args:
            share, seed: of :func:`split_by_image`, for data without a split for validation.
        """
        if "val" in self.splits and "train" in self.splits:
            return self.splits, ""
        rest = {name: one for name, one in self.splits.items() if name not in ("train", WHOLE)}
        whole = self.splits.get("train") or self.splits.get(WHOLE)
        if whole is None or "val" in rest:
            raise UserError(f"{self.path} has no images for training, but {', '.join(rest)} alone")
        parts = split_by_image(whole.content, share, seed)
        train, val = (Split(part, whole.images) for part in parts)
        said = (
            f"{self.path} has no split for validation: {len(val.content['images'])} of "
            f"{len(whole.content['images'])} images are it, drawn by the seed {seed}"
        )
        return {**rest, "train": train, "val": val}, said
