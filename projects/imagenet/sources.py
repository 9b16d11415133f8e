"""Where labelled images come from: folders of classes, csv files, and all that timm names.

=================== ==============================================================================
source              what it is
=================== ==============================================================================
``photos``          a folder with a folder for each class, as ImageNet's; images at any depth in it
``photos.csv``      lines ``path,label``, with or without that header; paths from the csv's folder
``hfds/NAME``       a data set of Hugging Face, by ``timm.data.create_dataset``, as are ``hfids/``,
                    ``wds/``, ``tfds/`` and ``torch/``, and a ``.tar`` of folders
=================== ==============================================================================
"""

import csv
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import torch
from PIL import Image
from timm.utils.misc import natural_key

from mvitv2_det.errors import UserError
from mvitv2_det.predict.images import read_rgb
from mvitv2_det.predict.inputs import IMAGE_ENDINGS

logger = logging.getLogger(__name__)

TIMM_PREFIXES = ("hfds/", "hfids/", "tfds/", "torch/", "wds/")
VAL_NAMES = ("val", "valid", "validation", "eval", "evaluation", "test")
# Headers of so many images are read before training; of larger sets, so many evenly spaced.
MOST_CHECKED = 20_000
_HELD_OUT_SEED = 0


@dataclass(frozen=True)
class Sample:
    """A file and the name of its class."""

    path: Path
    label: str


class Images(torch.utils.data.Dataset):
    """Labelled image files; an image that cannot be read is an error, where timm takes the next.

    Attributes:
        samples: the files.
        classes: names of the classes; labels are their indexes.
        transform: of an RGB image of Pillow; set by a loader.
    """

    def __init__(self, samples: Sequence[Sample], classes: Sequence[str]) -> None:
        self.samples = list(samples)
        self.classes = list(classes)
        self.transform: Callable[[Image.Image], Any] | None = None
        self._labels = {name: index for index, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """An image, transformed, and its label."""
        sample = self.samples[index]
        image = Image.fromarray(read_rgb(sample.path))
        return self.transform(image) if self.transform else image, self._labels[sample.label]

    def filenames(self) -> list[str]:
        """Paths of the images, in order."""
        return [str(sample.path) for sample in self.samples]


def is_timm_source(source: str) -> bool:
    """Whether timm reads a source."""
    return source.lower().startswith(TIMM_PREFIXES) or source.endswith(".tar")


def find_splits(train: str, val: str) -> tuple[str, str]:
    """Finds the two splits of what a user has named.

    A folder that holds ``train`` and ``val`` (or ``valid``, ``validation``, ``eval``, ``test``)
    is a data set, as ImageNet's is; otherwise a folder or csv of one of these names beside
    ``train`` is the validation split.

    Args:
        train, val: sources; ``val`` may be empty.

    Returns:
        Both sources. Validation is empty if there is none: a share of training is held out.
    """
    if is_timm_source(train):
        # Of one data set, which the split's name divides.
        return train, val or ("" if train.endswith(".tar") else train)
    folder = Path(train)
    if (folder / "train").is_dir():
        beside = [folder / name for name in VAL_NAMES]
        train = str(folder / "train")
    else:
        beside = [folder.with_name(name + folder.suffix) for name in VAL_NAMES]
        beside = [path for path in beside if folder.stem == "train" and path != folder]
    found = next((str(path) for path in beside if path.exists()), "")
    return train, val or found


def read_samples(
    source: str, classes: Sequence[str] | None = None
) -> tuple[list[Sample], list[str]]:
    """Lists the images of a folder of classes or of a csv file.

    Args:
        source: the folder or file.
        classes: the known classes, in the order of the outputs; None takes those of the source, in
            natural order.

    Returns:
        The samples, and the classes.

    Raises:
        UserError: there are none, or a class has none or is not known, or a file does not exist.
    """
    path = Path(source)
    if path.is_dir():
        samples = _read_folder(path)
    elif path.suffix.lower() == ".csv" and path.is_file():
        samples = _read_csv(path)
    else:
        raise UserError(
            f"there is no folder of classes or csv file {source!r}, and it is no name that timm "
            f"reads ({', '.join(TIMM_PREFIXES)})"
        )
    names = sorted({sample.label for sample in samples}, key=natural_key)
    if classes is None:
        return samples, names
    if unknown := [name for name in names if name not in set(classes)]:
        where = next(sample.path for sample in samples if sample.label == unknown[0])
        raise UserError(
            f"{source} has class {unknown[0]!r} (of {where}), which is not among the "
            f"{len(classes)} classes that are trained: {_few(classes)}"
        )
    return samples, list(classes)


def read_class_names(file: str) -> list[str]:
    """Reads names of classes from a text file, one a line, in the order of the outputs.

    Raises:
        UserError: the file cannot be read, is empty, or has a name twice.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"dataset.classes: cannot read {file}: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UserError(f"dataset.classes: {file} has no names: expected one a line")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"dataset.classes: {file} has {twice[0]!r} more than once")
    return names


def held_out(samples: Sequence[Sample], share: float, *, inside: bool) -> list[Sample]:
    """Divides samples into two parts, always the same: a share of each class, and the rest.

    Args:
        samples: all.
        share: of each class's images, at least one, in (0, 1).
        inside: return the share, otherwise the rest.
    """
    rng = np.random.default_rng(_HELD_OUT_SEED)
    by_class: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        by_class.setdefault(sample.label, []).append(index)
    chosen: set[int] = set()
    for indexes in by_class.values():
        count = max(1, round(share * len(indexes)))
        chosen.update(rng.permutation(indexes)[:count].tolist())
    return [sample for index, sample in enumerate(samples) if (index in chosen) == inside]


def check_readable(samples: Sequence[Sample]) -> None:
    """Reads the headers of images, of at most :data:`MOST_CHECKED`.

    Raises:
        UserError: a file is no image.
    """
    step = -(-len(samples) // MOST_CHECKED)
    for sample in samples[::step]:
        try:
            with Image.open(sample.path):
                pass
        except OSError:
            read_rgb(sample.path)  # says what is wrong with it


def open_timm(
    source: str, split: str, root: str, options: Mapping[str, Any], training: bool
) -> Any:
    """Opens what timm reads.

    Args:
        source: ``hfds/NAME`` and so on; see the head of this module.
        split: name of the split.
        root: folder of its files, where the kind needs one.
        options: further keywords of ``timm.data.create_dataset``.
        training: whether samples of a stream are shuffled.

    Raises:
        UserError: timm or the package that it needs for this refuses.
    """
    if any("pipe:" in str(value) for value in (source, split, root, *options.values())):
        raise UserError(f"{source}, split {split!r}: webdataset would run what follows 'pipe:'")
    is_tar = source.endswith(".tar")
    try:
        return timm.data.create_dataset(
            "" if is_tar else source,
            root=source if is_tar else root or None,
            split=split,
            is_training=training,
            **options,
        )
    except ImportError as error:
        raise UserError(f"{source}: {error}; install the package that it names") from error
    except Exception as error:  # whatever the packages behind timm raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{source}, split {split!r} cannot be opened: {reason}") from error


def names_of(dataset: Any) -> list[str]:
    """Names of the classes of a data set that timm has opened; empty if it has none."""
    if names := getattr(dataset, "classes", None):  # torchvision's
        return [str(name) for name in names]
    reader = getattr(dataset, "reader", None)
    indexes = (
        getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    )
    return [str(name) for name in sorted(indexes, key=indexes.__getitem__)]


def _read_folder(folder: Path) -> list[Sample]:
    try:
        inside = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}") from error
    classes = [entry for entry in inside if entry.is_dir()]
    if not classes:
        raise UserError(
            f"folder {folder} has no folders: expected one for each class, with its images"
        )
    samples = []
    for entry in classes:
        images = _images_in(entry)
        if not images:
            raise UserError(f"class folder {entry} holds no image: fill it or remove it")
        samples += [Sample(path, entry.name) for path in images]
    return samples


def _images_in(folder: Path) -> list[Path]:
    found = (
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_ENDINGS
    )
    return sorted(found, key=lambda path: natural_key(str(path)))


def _read_csv(file: Path) -> list[Sample]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = [(number, row) for number, row in enumerate(csv.reader(lines), 1) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    if rows and [cell.strip().lower() for cell in rows[0][1][:2]] == ["path", "label"]:
        rows = rows[1:]
    if not rows:
        raise UserError(f"{file} has no lines path,label")
    samples = []
    for number, row in rows:
        if len(row) < 2 or not row[0].strip() or not row[1].strip():
            raise UserError(f"{file}, line {number}: expected path,label, got {','.join(row)!r}")
        path = file.parent / row[0].strip()
        if not path.is_file():
            raise UserError(f"{file}, line {number}: there is no file {path}")
        samples.append(Sample(path, row[1].strip()))
    return samples


def describe(samples: Iterable[Sample]) -> str:
    """Counts images and classes, in words."""
    counts = Counter(sample.label for sample in samples)
    least, most = min(counts.values()), max(counts.values())
    return f"{sum(counts.values()):,} images of {len(counts)} classes, {least} to {most} of each"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
