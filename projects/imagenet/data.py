"""The data of a run: what depends on them in the config, and the loaders.

Axes: B images, H × W pixels.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from omegaconf import DictConfig
from PIL import Image
from timm.data import create_loader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from mvitv2_det.data.loader import BatchOrder, TrainLoader
from mvitv2_det.data.streams import InOrder, Stream, StreamOrder
from mvitv2_det.errors import Unreadable, UserError
from mvitv2_det.recognition.description import Input
from projects.common.augment import mend_posterize
from projects.common.runs import (
    check_pairs,
    describe,
    set_num_classes,
    set_schedule,
    trained_description,
)
from projects.common.sources import Sample, count_samples, given_classes, held_out

from .sources import Images, LabelledImages, check_readable, read_samples
from .streams import open_stream
from .timm_sources import OpenedImages, find_splits, is_timm_source, names_of, open_timm

# Detectron2's set-up gives handlers to the package's loggers alone.
logger = logging.getLogger(f"mvitv2_det.{__name__}")


def prepare_datasets(cfg: DictConfig, *, training: bool, check: bool = True) -> None:
    """Completes a config by its data: splits, classes, and the length of the run.

    Args:
        cfg: the config, which is changed in place.
        training: whether the training split is needed in addition to the validation split.
        check: one process of a run is enough; others get the completed config.

    Raises:
        UserError: data are missing or wrong, or do not fit the config.
    """
    if not check:
        if training:
            check_pairs(cfg, comm.get_world_size())
        for split in ("train", "val") if training else ("val",):
            _check_parts(cfg.dataset, split)
        return
    _find_data(cfg, training)
    trained = trained_description(cfg, training)
    classes = trained.classes if trained else _classes(cfg, training)
    cfg.dataset.classes = list(classes)
    set_num_classes(cfg, classes)
    cfg.description = describe(cfg, "image").to_dict()
    val = open_split(cfg.dataset, "val", check=True)
    _check_outputs(cfg, val)
    if not training:
        # A layer that stays random would give a result like any other.
        cfg.train.strict = True
        return
    train = open_split(cfg.dataset, "train", check=True)
    if isinstance(train, Images) and (empty := [n for n in classes if n not in train.labels]):
        logger.warning("%d classes have no image to train on, such as %s", len(empty), empty[0])
    set_schedule(cfg, len(train), "images")
    logger.info("%d images to train on, %d to validate on", len(train), len(val))


def _check_outputs(cfg: DictConfig, val: LabelledImages) -> None:
    """Refuses classes of which ``task.first_outputs`` leaves out the output."""
    first = cfg.task.get("first_outputs")
    if first is None or not isinstance(val, Images):
        return
    if beyond := [name for name in val.classes[first:] if name in val.labels]:
        raise UserError(
            f"task.first_outputs is {first}, but validation has images of {beyond[0]!r}, which is "
            f"output {val.classes.index(beyond[0])}"
        )


def open_split(dataset: Mapping[str, Any], split: str, *, check: bool = False) -> Any:
    """Opens a split of the data that a config names.

    Args:
        dataset: the config's node ``dataset``, completed by :func:`prepare_datasets`.
        split: ``train`` or ``val``.
        check: whether to read the images' headers.

    Returns:
        a data set of pairs (image, label), with an attribute ``transform``.

    Raises:
        UserError: as :mod:`projects.imagenet.sources` does.
    """
    source = dataset[split] or dataset["train"]
    if is_timm_source(source):
        opened = _open_timm(dataset, split)
        make = open_stream if isinstance(opened, IterableDataset) else OpenedImages
        images = make(opened, source, dataset["classes"])
        if check:
            _look_at_first(images, spare=split == "train")
        return images
    samples, classes = read_samples(source, dataset["classes"])
    if not dataset["val"]:
        samples = held_out(samples, dataset["val_share"], inside=split == "val")
    if not samples:
        raise UserError(
            f"nothing of {source} is left for {split}: dataset.val_share is "
            f"{dataset['val_share']:g}; give dataset.val, or more images"
        )
    if check:
        check_readable(samples)
    logger.info("%s: %s, %s", split, source, count_samples(samples, "images"))
    return Images(samples, classes)


def _open_timm(dataset: Mapping[str, Any], split: str) -> Any:
    return open_timm(
        dataset[split] or dataset["train"],
        dataset[f"{split}_split"],
        dataset["root"],
        dataset["options"],
        training=split == "train",
    )


def _check_parts(dataset: Mapping[str, Any], split: str) -> None:
    """Refuses a stream that the processes cannot divide among them."""
    rank, processes = comm.get_rank(), comm.get_world_size()
    if processes > 1 and is_timm_source(dataset[split]):
        images = open_split(dataset, split)
        if isinstance(images, Stream):
            next(images.stored(seed=None, part=rank, parts=processes), None)


def _look_at_first(images: LabelledImages, *, spare: bool) -> None:
    """Reads an image, and so finds names of columns, labels and archives that are wrong.

    Raises:
        UserError: it is wrong; an image that is unreadable may be spared, as training does.
    """
    first = next(images.stored(seed=None), None) if isinstance(images, Stream) else 0
    if first is None:
        raise UserError("there is no image")
    try:
        images.read(first)
    except Unreadable:
        if not spare:
            raise


def train_loader(
    dataset: Mapping[str, Any],
    input: Input,
    augmentation: Mapping[str, Any],
    *,
    total_batch_size: int,
    num_workers: int,
) -> TrainLoader:
    """Makes the training loader, of (B, 3, H, W) images and (B,) labels for each process.

    It can start anywhere in a run.

    Args:
        dataset: the config's node ``dataset``.
        input: size and normalisation.
        augmentation: keywords of ``timm.data.create_loader``.
        total_batch_size: images of all processes together.
        num_workers: of each process.

    Raises:
        UserError: the batch cannot be divided among the processes.
    """
    images = open_split(dataset, "train")
    images.transform = training_transform(input, augmentation)
    is_stream = isinstance(images, Stream)
    make_order = StreamOrder if is_stream else BatchOrder
    order = make_order(images if is_stream else len(images), total_batch_size)
    return TrainLoader(
        images,
        order,
        collate=default_collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def training_transform(
    input: Input, augmentation: Mapping[str, Any]
) -> Callable[[Image.Image], Tensor]:
    """Makes timm's transform for training: an image of Pillow to (3, size, size), normalised.

    Args:
        input: size and normalisation.
        augmentation: keywords of ``timm.data.create_loader``.

    Raises:
        UserError: images are to be repeated.
    """
    if augmentation.get("num_aug_repeats"):
        raise UserError("augmentation.num_aug_repeats must be 0: the order has no repetitions")
    try:
        # Which keywords are the transform's is timm's to know.
        loader = create_loader(
            Images([Sample(Path(), "")], [""]),
            input.size,
            1,
            is_training=True,
            use_prefetcher=False,
            mean=input.mean,
            std=input.std,
            num_workers=0,
            **augmentation,
        )
    except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"timm refuses dataloader.train.augmentation: {reason}") from error
    transform = loader.dataset.transform
    for step in transform.transforms:
        mend_posterize(getattr(step, "ops", ()))
    return transform


def test_loader(
    dataset: Mapping[str, Any], input: Input, *, batch_size: int, num_workers: int
) -> DataLoader:
    """Makes the validation loader: every image once, whatever the number of processes.

    ``timm.data.create_loader`` would repeat some images so that all processes have as many.

    Args:
        dataset: the config's node ``dataset``.
        input: the preprocessing.
        batch_size: images of a process.
        num_workers: of each process.
    """
    images = open_split(dataset, "val")
    images.transform = input.transform()
    if isinstance(images, Stream):
        return DataLoader(
            images,
            batch_sampler=InOrder(images, batch_size),
            num_workers=num_workers,
            collate_fn=default_collate,
        )
    return build_detection_test_loader(
        images,
        mapper=None,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=default_collate,
    )


def _find_data(cfg: DictConfig, training: bool) -> None:
    """Sets the sources of the splits; of an empty one for validation, a share is held out."""
    data = cfg.dataset
    if not training and data.val:
        data.train = data.val  # needed for the names of the classes alone
        return
    if not data.train:
        raise UserError(
            "dataset.train is missing: name a folder of classes, a csv file, or a data set that "
            "timm reads (hfds/NAME, …)"
        )
    data.train, data.val = find_splits(data.train, data.val)
    if not data.val:
        if is_timm_source(data.train) or not 0 < data.val_share < 1:
            raise UserError(
                f"there is no validation split beside {data.train}: give dataset.val, or a "
                f"dataset.val_share in (0, 1) to hold out, got {data.val_share}"
            )
        logger.info("no validation split: %g of each class are held out", data.val_share)


def _classes(cfg: DictConfig, training: bool) -> Sequence[str]:
    """Names of the classes, in the order of the outputs."""
    if classes := given_classes(cfg.dataset.classes):
        return classes
    source = cfg.dataset.train
    if not is_timm_source(source):
        return read_samples(source)[1]
    split = "train" if training else "val"
    names = names_of(_open_timm(cfg.dataset, split))
    if not names and not cfg.model.num_classes:
        raise UserError(f"{source} does not name its classes: give model.num_classes")
    return names or [str(index) for index in range(cfg.model.num_classes)]
