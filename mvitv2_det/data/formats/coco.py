"""COCO's format and its relatives: LVIS, Roboflow's folders, and a json file without a split.

A file is used as it is, where it needs no change.
"""

import os.path
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..coco_records import load_coco
from ..findings import Findings
from .building import Split
from .files import kind_of_json, split_folders, split_name, within

# Roboflow's name, and those of COCO and LVIS.
_FOLDER_NAMES = ("_annotations.coco.json", "annotations.json", "annotations.coco.json")
_WORDS = ("instances_", "lvis_v1_", "lvis_v0.5_", "annotations_", "_annotations", "panoptic_")


def find(path: Path) -> Path | None:
    """Finds a json file or a folder in COCO's format."""
    files = list(_files(path).values())
    return path if files and kind_of_json(files[0]) == "coco" else None


def read(path: Path, findings: Findings) -> dict[str, Split]:
    """Reads a data set.

    Args:
        path: what :func:`find` found.
        findings: what is wrong is noted here.

    Raises:
        UserError: a file is not in COCO's format, or the folder of its images is not found.
    """
    splits = {}
    for split, file in _files(path).items():
        content = load_coco(str(file))
        with_names = [_with_file_name(image) for image in content["images"]]
        changed = with_names != content["images"]
        content["images"] = with_names
        # A folder's own labels, and paths in the json, lead to the images.
        images = image_folder(file, content, path if path.is_dir() else None)
        splits[split] = Split(content, images, None if changed else file)
    return splits


def image_folder(file: Path, content: dict[str, Any], root: Path | None = None) -> Path:
    """Finds the folder that the names of a json file's images start from.

    Args:
        file: the json file.
        content: of it.
        root: the folder of the data set, if one was named.

    Raises:
        UserError: no folder near the file holds the first image.
    """
    names = [image.get("file_name") for image in content["images"] if isinstance(image, dict)]
    name = next((name for name in names if isinstance(name, str) and name), None)
    if name is None:
        raise UserError(f"{file} has no image with a 'file_name'")
    split = _stem(file)
    parents = dict.fromkeys(one for one in (file.parent, root, file.parent.parent) if one)
    inner = (split, f"images/{split}", "images", "", "data", "JPEGImages")
    for parent in parents:
        for folder in inner:
            try:
                found = within(parent / folder, name).is_file()
            except UserError:
                continue
            if found:
                return parent / folder
    raise UserError(
        f"{name!r}, the first image of {file}, is in no folder near it, such as "
        f"{file.parent / 'images'}: say dataset.train_json and dataset.train_images"
    )


def json_files(path: Path) -> dict[str, Path]:
    """The json files of a data set by split, whatever is in them; none if it has no such names."""
    if path.is_file():
        return {split_name(_stem(path)): path} if path.suffix == ".json" else {}
    found: dict[str, Path] = {}
    for folder in (path, path / "annotations"):
        if folder.is_dir():
            for file in sorted(folder.glob("*.json")):
                if split := split_name(_stem(file)):
                    found.setdefault(split, file)
    return found


def _files(path: Path) -> dict[str, Path]:
    """The json files by split; a file alone is not split, whatever its name."""
    if path.is_file():
        return {"": path} if path.suffix == ".json" else {}
    if not path.is_dir():
        return {}
    for name in _FOLDER_NAMES:
        files = {
            split: folder / name
            for split, folder in split_folders(path).items()
            if (folder / name).is_file()
        }
        if files:
            return files
    if files := json_files(path):
        return files
    alone = [*path.glob("*.json"), *path.glob("annotations/*.json")]
    return {"": alone[0]} if len(alone) == 1 else {}


def _stem(file: Path) -> str:
    """What remains of a file's name when it does not say what all names say: mostly the split."""
    stem = file.stem
    for word in _WORDS:
        stem = stem.replace(word, "")
    return stem


def _with_file_name(image: Any) -> Any:
    """LVIS names images by their address at COCO: the last two parts are folder and file."""
    if not isinstance(image, dict) or "file_name" in image:
        return image
    address = image.get("coco_url")
    if not isinstance(address, str) or address.count("/") < 2:
        return image
    return {**image, "file_name": os.path.join(*address.split("/")[-2:])}
