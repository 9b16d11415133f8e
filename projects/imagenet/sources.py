"""Where labelled images come from: folders of classes and csv files.

=================== ==============================================================================
source              what it is
=================== ==============================================================================
``photos``          a folder with a folder for each class, as ImageNet's; images at any depth in it
``photos.csv``      lines ``path,label``, with or without that header; paths from the csv's folder
``hfds/NAME``, …    what timm reads; see :mod:`projects.imagenet.timm_sources`
=================== ==============================================================================

Axes: H × W pixels.
"""

import csv
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.utils.misc import natural_key

from mvitv2_det.errors import UserError
from mvitv2_det.predict.images import read_rgb, transformed
from mvitv2_det.predict.inputs import IMAGE_ENDINGS
from projects.common.sources import Sample, order_classes

TIMM_PREFIXES = ("hfds/", "hfids/", "tfds/", "torch/", "wds/")
# Headers of so many images are read before training; of larger sets, so many evenly spaced.
MOST_CHECKED = 20_000


class LabelledImages(torch.utils.data.Dataset, ABC):
    """Images and labels, from wherever they come: the pixels are those that prediction sees.

    Attributes:
        classes: names of the classes; labels are their indexes.
        transform: of an RGB image of Pillow; set by a loader.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.transform: Callable[[Image.Image], Any] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: Any) -> tuple[np.ndarray, int, object]:
        """Reads an image: (H, W, 3) RGB uint8, its label, and what errors call it, as ``str()``.

        Raises:
            Unreadable: it cannot be read.
        """

    def __getitem__(self, index: Any) -> tuple[Any, int]:
        """An image, transformed, and its label.

        Raises:
            Unreadable: it cannot be read or resized, so that training takes another.
        """
        rgb, label, name = self.read(index)
        if not self.transform:
            return Image.fromarray(rgb), label
        return transformed(self.transform, rgb, name), label


class Images(LabelledImages):
    """Labelled image files.

    Attributes:
        samples: the files.
        labels: names of the classes that they are of.
    """

    def __init__(self, samples: Sequence[Sample], classes: Sequence[str]) -> None:
        super().__init__(classes)
        self.samples = list(samples)
        self.labels = {sample.label for sample in samples}
        self._numbers = {name: index for index, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[np.ndarray, int, object]:
        """Reads a file; see :meth:`LabelledImages.read`."""
        sample = self.samples[index]
        return read_rgb(sample.path), self._numbers[sample.label], f"image {sample.path}"

    def filenames(self) -> list[str]:
        """Paths of the images, in order."""
        return [str(sample.path) for sample in self.samples]


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
