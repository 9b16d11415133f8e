"""Streams of labelled images, which timm opens and can be read from their beginning only.

=================== ==============================================================================
source              what it is
=================== ==============================================================================
``wds/``            tar archives ("shards") of the package webdataset, in the folder or at the
                    address ``dataset.root``; a split is ``train``, if there is an ``info.json``, or
                    such as ``train-{0000..0146}.tar|1281167``, with the number of images
``hfids/NAME``      a data set of Hugging Face, as it is loaded
``tfds/NAME``       a data set of TensorFlow
=================== ==============================================================================

timm finds the data; they are read, decoded and shuffled here, so that each image has a name, no
damaged one is left out in silence, and a run can go on where it was.
"""

import inspect
import io
import json
import logging
import os
import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mvitv2_det.data.streams import Stream
from mvitv2_det.errors import UserError
from mvitv2_det.predict.images import as_rgb, decode_rgb, naming_damage

from .sources import LabelledImages
from .timm_sources import Labels, names_of

logger = logging.getLogger(f"mvitv2_det.{__name__}")


def open_stream(dataset: Any, source: str, classes: Sequence[str]) -> "LabelledStream":
    """Makes a stream of what timm has opened.

    Args:
        dataset: timm's ``IterableImageDataset``.
        source: its name.
        classes: names of the classes.

    Raises:
        UserError: it has a class that is not known.
    """
    kinds = {"wds": Shards, "hfids": HuggingFaceStream, "tfds": TensorFlowStream}
    return kinds[source.partition("/")[0].lower()](dataset, source, classes)


class LabelledStream(LabelledImages, Stream):
    """Labelled images of a stream, by what :meth:`stored` gives of them.

    Args:
        dataset: timm's.
        source: its name.
        classes: names of the classes.
    """

    def __init__(self, dataset: Any, source: str, classes: Sequence[str]) -> None:
        super().__init__(classes)
        self.dataset, self.reader, self.source = dataset, dataset.reader, source
        self._label = Labels(names_of(dataset), classes, source)

    def __len__(self) -> int:
        return self.reader.num_samples

    def read(self, index: tuple[str, Any, Any]) -> tuple[np.ndarray, int, object]:
        """Decodes a stored image: its name, content and label."""
        name, content, label = index
        return self.decode(content, name), self._label(label, name), name

    @abstractmethod
    def decode(self, content: Any, name: str) -> np.ndarray:
        """Decodes an image: (H, W, 3) RGB, uint8.

        Raises:
            Unreadable: it cannot be decoded.
        """

    def _naming_source(self, samples: Iterator[Any]) -> Iterator[Any]:
        """The samples, with an error of one line where they cannot be read.

        Raises:
            UserError: the packages behind timm raise anything.
        """
        try:
            yield from samples
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"cannot read {self.source}: {reason}") from error


class Shards(LabelledStream):
    """Archives of the package webdataset: ``KEY.jpg`` beside ``KEY.cls`` or ``KEY.json``."""

    def stored(
        self, *, seed: int | None, epoch: int = 0, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[str, bytes, Any]]:
        """Reads the archives, each process its own; see :meth:`Stream.stored`.

        Raises:
            UserError: an archive cannot be read, or there are fewer than processes.
        """
        import webdataset

        reader = self.reader
        archives = [os.path.join(reader.root, name) for name in reader.split_info.filenames]
        if len(archives) < parts:
            raise UserError(
                f"{self.source}, split {reader.split_info.name or archives[0]!r}, has "
                f"{len(archives)} archives for {parts} processes, each of which needs one: use "
                f"fewer, or more archives"
            )
        stages = []
        if seed is not None:
            order = random.Random(seed)
            order.shuffle(archives)
            size, first = reader.sample_shuffle_size, reader.sample_initial_size
            stages = [webdataset.shuffle(size, initial=first, rng=order)]
        samples = webdataset.DataPipeline(
            webdataset.SimpleShardList(archives[part::parts]),
            webdataset.tarfile_to_samples(),
            *stages,
        )
        return map(self._parts_of, self._naming_source(iter(samples)))

    def _parts_of(self, sample: dict[str, Any]) -> tuple[str, bytes, Any]:
        """The name, the image and the label of a sample, which has a member for each ending.

        Raises:
            UserError: it lacks one.
        """
        name = f"{sample['__url__']}: {sample['__key__']}"
        endings = self.reader.input_key.split(";")
        image = next((sample[ending] for ending in endings if ending in sample), None)
        if image is None:
            raise UserError(f"{name} has no image: expected an ending of {', '.join(endings)}")
        key = self.reader.target_key or self.reader.split_info.alt_label
        try:
            label = json.loads(sample["json"])[key] if key else int(sample["cls"])
        except (KeyError, TypeError, ValueError) as error:
            where = f"{key!r} in its .json" if key else "a number in its .cls"
            raise UserError(f"{name} has no label: expected {where}") from error
        if self.reader.remap_class:
            label = self.reader.class_to_idx.get(label)
        return name, image, label

    def decode(self, content: bytes, name: str) -> np.ndarray:
        """Decodes the image of a sample; see :meth:`LabelledStream.decode`."""
        return decode_rgb(io.BytesIO(content), name)


class HuggingFaceStream(LabelledStream):
    """A data set of Hugging Face, of which a process has every so-manieth image."""

    def stored(
        self, *, seed: int | None, epoch: int = 0, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[str, dict[str, Any], Any]]:
        """Reads the rows; see :meth:`Stream.stored`.

        Raises:
            UserError: they cannot be read.
        """
        return self._naming_source(self._rows(seed, part, parts))

    def _rows(
        self, seed: int | None, part: int, parts: int
    ) -> Iterator[tuple[str, dict[str, Any], Any]]:
        import datasets
        from datasets.distributed import split_dataset_by_node

        reader = self.reader
        if reader.download:
            rows = reader.builder.as_dataset(split=reader.split).to_iterable_dataset()
        else:
            rows = reader.builder.as_streaming_dataset(split=reader.split)
        rows = rows.cast_column(reader.input_key, datasets.Image(decode=False))
        if seed is not None:
            options = {}
            if "max_buffer_input_shards" in inspect.signature(rows.shuffle).parameters:
                # Of one file it would otherwise still wait for the threads that read several.
                options["max_buffer_input_shards"] = max(1, min(10, rows.num_shards))
            rows = rows.shuffle(seed=seed, buffer_size=reader.shuffle_size, **options)
        rows = split_dataset_by_node(rows, rank=part, world_size=parts)
        for number, row in enumerate(rows):
            image, label = row[reader.input_key], row[reader.target_key]
            if reader.remap_class:
                label = reader.class_to_idx.get(label)
            where = image["path"] or f"row {number} of those with seed {seed}"
            yield f"{self.source}, {reader.split}: {where}", image, label

    def decode(self, content: dict[str, Any], name: str) -> np.ndarray:
        """Decodes the image of a row; see :meth:`LabelledStream.decode`."""
        import datasets

        with naming_damage(name):
            return as_rgb(datasets.Image().decode_example(content), "RGB")


class TensorFlowStream(LabelledStream):
    """A data set of TensorFlow, which decodes and shuffles it by itself."""

    def stored(
        self, *, seed: int | None, epoch: int = 0, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[str, Any, Any]]:
        """Reads what timm's reader gives; see :meth:`Stream.stored`.

        Raises:
            UserError: it cannot be read, or several processes are to evaluate it.
        """
        if seed is None and parts > 1:
            raise UserError(
                f"{self.source}: several processes cannot evaluate each image of it once: "
                f"evaluate with --num-gpus 1"
            )
        if epoch == 0 and seed is not None:
            logger.warning(
                "%s is shuffled by TensorFlow: a run that is left and goes on may see other images "
                "of its epoch than it would have",
                self.source,
            )
        self.reader.set_epoch(epoch)
        pairs = enumerate(self._naming_source(iter(self.reader)))
        return ((f"{self.source}: image {n}", image, label) for n, (image, label) in pairs)

    def decode(self, content: Any, name: str) -> np.ndarray:
        """The image of Pillow as an array."""
        with naming_damage(name):
            return as_rgb(content, "RGB")
