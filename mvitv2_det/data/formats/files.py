"""Files of data sets: which split they are of, and what they are."""

import os.path
import re
from functools import lru_cache
from pathlib import Path

from ...errors import UserError
from ..coco_records import load_json

# Names of splits, as tools write them in lower case.
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
WHOLE = ""  # the name of the one split of data that are not split
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_LARGEST_TEXT = 2**26  # bytes of a file of text: more is none that a tool for labels writes


def split_name(text: str) -> str:
    """The name of a split that a folder, a file or a label names.

    COCO says ``train2017``, and Darknet's YOLO ``obj_train_data``.
    """
    return _SPLITS.get(re.sub(r"^obj_|_data$|[-_]?\d{4}$", "", text.lower()), WHOLE)


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of splits in a folder; the folder itself if it has none."""
    found = {
        split_name(folder.name): folder
        for folder in sorted(root.iterdir())
        if split_name(folder.name) and folder.is_dir()
    }
    return found or {WHOLE: root}


def kind_of_json(path: Path) -> str:
    """Tells what a json file is: ``coco``, ``panoptic``, ``labelme``, or nothing known.

    Raises:
        UserError: it is no json.
    """
    return _kind_of_json(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=64)  # Several formats ask, and the files are large.
def _kind_of_json(path: Path, written: int) -> str:
    content = load_json(str(path))
    if not isinstance(content, dict):
        return ""
    if isinstance(content.get("shapes"), list):
        return "labelme"
    annotations = content.get("annotations")
    if not (isinstance(annotations, list) and {"images", "categories"} <= content.keys()):
        return ""
    first = annotations[0] if annotations else None
    return "panoptic" if isinstance(first, dict) and "segments_info" in first else "coco"


def within(root: Path, path: str | Path) -> Path:
    """Returns the absolute path of a file that must be in a folder or below.

    Symbolic links of the user's own may lead elsewhere: what label files say may not.

    Raises:
        UserError: it is elsewhere.
    """
    if "\0" in str(path):
        raise UserError(f"{str(path)!r} is no name of a file")
    whole = Path(os.path.abspath(root / path))
    if not whole.is_relative_to(os.path.abspath(root)):
        raise UserError(f"{str(path)!r} leads out of the folder {root}")
    return whole


def read_text(path: Path) -> str:
    """Reads a file of text.

    Raises:
        UserError: there is none, it is too large, or it is no text in UTF-8.
    """
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise UserError(f"{path} is larger than {_LARGEST_TEXT >> 20} MB: no file of labels")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8") from error
