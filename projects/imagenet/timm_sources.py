"""Labelled images that timm opens, by the names of its ``create_dataset``.

=================== ==============================================================================
source              what it is
=================== ==============================================================================
``hfds/NAME``       a data set of Hugging Face
``torch/NAME``      a data set of torchvision
``photos.tar``      an archive with a folder for each class
``wds/``, ``hfids/`` streams; see :mod:`projects.imagenet.streams`
=================== ==============================================================================

timm's own data sets take the next image in the place of one that they cannot read, in evaluation
too, and do not rotate images as their Exif data say: here timm finds the images, and they are read
as all others are.
"""

import logging
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import timm.data
from torchvision.datasets import DatasetFolder

from mvitv2_det.errors import Unreadable, UserError
from mvitv2_det.predict.images import as_rgb, decode_rgb, read_rgb
from projects.common.sources import find_splits as find_splits_of_files

from .sources import TIMM_PREFIXES, LabelledImages

logger = logging.getLogger(f"mvitv2_det.{__name__}")

_INSTALL = (
    "install the package that it names: pip install 'mvitv2_det[streams]' has those of streams"
)


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


def open_timm(
    source: str, split: str, root: str, options: Mapping[str, Any], training: bool
) -> Any:
    """Opens what timm reads.

    Args:
        source: ``hfds/NAME`` and so on; see the head of this module.
        split: name of the split.
        root: folder of its files, where the kind needs one.
        options: further keywords of ``timm.data.create_dataset``.
        training: whether it is to train on; streams must then know their length.

    Returns:
        timm's data set, or torchvision's.

    Raises:
        UserError: timm or the package that it needs for this refuses.
    """
    if any("pipe:" in str(value) for value in (source, split, root, *options.values())):
        raise UserError(f"{source}, split {split!r}: webdataset would run what follows 'pipe:'")
    if source.lower().startswith(("torch/", "wds/")) and not root:
        raise UserError(f"dataset.root is missing: the folder of the files of {source}")
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
        raise UserError(f"{source}: {error}; {_INSTALL}") from error
    except Exception as error:  # whatever the packages behind timm raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "install" in reason.lower():  # timm's way to say that webdataset is missing
            reason = f"{reason}; {_INSTALL}"
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


class Labels:
    """The label of what a data set numbers by itself.

    Its numbers are those of the classes, unless its names say that they are others, as in a
    validation split that lacks a class.

    Args:
        own: its names in the order of its numbers; may be empty.
        classes: those of the network's outputs.
        source: for errors.

    Raises:
        UserError: it has a class that is not known.
    """

    def __init__(self, own: Sequence[str], classes: Sequence[str], source: str) -> None:
        places = {name: place for place, name in enumerate(classes)}
        unknown = [name for name in own if name not in places]
        self._numbers = list(range(len(classes)))
        if unknown and len(own) != len(classes):
            raise UserError(
                f"{source} has class {unknown[0]!r}, which is not among the {len(classes)} classes "
                f"that are trained: {', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
            )
        if unknown:
            logger.warning("%s: its classes are taken by their numbers, as names differ", source)
        elif own:
            self._numbers = [places[name] for name in own]

    def __call__(self, label: Any, name: object) -> int:
        """The index of a class; ``name`` is what errors call the image.

        Raises:
            UserError: the label is no number of a class.
        """
        try:
            number = operator.index(label)
        except TypeError:
            number = -1
        if not 0 <= number < len(self._numbers):
            raise UserError(
                f"{name} has label {label}: expected a number from 0 to {len(self._numbers) - 1}"
            )
        return self._numbers[number]


class OpenedImages(LabelledImages):
    """What timm has opened, where each image can be asked for by its number.

    Args:
        dataset: timm's, or torchvision's.
        source: its name.
        classes: names of the classes.

    Raises:
        UserError: it has a class that is not known.
    """

    def __init__(self, dataset: Any, source: str, classes: Sequence[str]) -> None:
        super().__init__(classes)
        self.dataset, self.source = dataset, source
        self._label = Labels(names_of(dataset), classes, source)
        if isinstance(dataset, DatasetFolder):
            dataset.loader = read_rgb

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int) -> tuple[np.ndarray, int, object]:
        """Reads an image; see :meth:`LabelledImages.read`."""
        reader = getattr(self.dataset, "reader", None)
        name = _Name(self.source, index, reader)
        try:
            if reader is None:
                image, label = self.dataset[index][:2]
                rgb = image if isinstance(image, np.ndarray) else as_rgb(image, "RGB")
            else:
                content, label = reader[index][:2]
                with content:
                    rgb = decode_rgb(content, name)
        except Unreadable:
            raise
        except (OSError, UserError) as error:
            raise Unreadable(f"cannot read image {name}: {' '.join(str(error).split())}") from error
        return rgb, self._label(label, name), name


class _Name:
    """What errors call an image: some readers would read the image once more for its name."""

    def __init__(self, source: str, index: int, reader: Any) -> None:
        self.source, self.index, self.reader = source, index, reader

    def __str__(self) -> str:
        name = self.reader.filename(self.index) if self.reader else None
        return f"{self.source}[{self.index}]" + (f" ({name})" if name else "")
