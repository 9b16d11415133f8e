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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm.data
import torch
from PIL import Image
from timm.utils.misc import natural_key

from mvitv2_det.errors import UserError
from mvitv2_det.predict.images import read_rgb
from mvitv2_det.predict.inputs import IMAGE_ENDINGS
from projects.common.sources import Sample, order_classes
from projects.common.sources import find_splits as find_splits_of_files

logger = logging.getLogger(__name__)

TIMM_PREFIXES = ("hfds/", "hfids/", "tfds/", "torch/", "wds/")
# Headers of so many images are read before training; of larger sets, so many evenly spaced.
MOST_CHECKED = 20_000


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

    For what timm does not read, :func:`projects.common.sources.find_splits` does.

    Args:
        train, val: sources; ``val`` may be empty.

    Returns:
        Both sources. Validation is empty if there is none: a share of training is held out.
    """
    if is_timm_source(train):
        # Of one data set, which the split's name divides.
        return train, val or ("" if train.endswith(".tar") else train)
    return find_splits_of_files(train, val)


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
    return samples, order_classes(samples, classes, source)


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
