"""The data of a run: what depends on them in the config, and the loaders.

Axes: B images, H × W pixels.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from omegaconf import DictConfig
from timm.data import create_loader
from torch.utils.data import DataLoader, IterableDataset, default_collate

from mvitv2_det.data.loader import BatchOrder, TrainLoader
from mvitv2_det.errors import UserError
from mvitv2_det.recognition.description import Input
from projects.common.augment import mend_posterize
from projects.common.runs import (
    check_pairs,
    describe,
    set_num_classes,
    set_schedule,
    trained_description,
)
from projects.common.sources import count_samples, held_out, read_class_names

from .sources import (
    Images,
    check_readable,
    find_splits,
    is_timm_source,
    names_of,
    open_timm,
    read_samples,
)

logger = logging.getLogger(__name__)


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
        return
    _find_data(cfg, training)
    trained = trained_description(cfg, training)
    classes = trained.classes if trained else _classes(cfg, training)
    cfg.dataset.classes = list(classes)
    set_num_classes(cfg, classes)
    cfg.description = describe(cfg, "image").to_dict()
    val = open_split(cfg.dataset, "val", check=True)
    if not training:
        # A layer that stays random would give a result like any other.
        cfg.train.strict = True
        return
    train = open_split(cfg.dataset, "train", check=True)
    set_schedule(cfg, len(train), "images")
    logger.info("%d images to train on, %d to validate on", len(train), len(val))


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
        name = dataset[f"{split}_split"]
        return open_timm(
            source, name, dataset["root"], dataset["options"], training=split == "train"
        )
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


class EpochLoader:
    """Batches of a stream for training without end, shuffled anew in each epoch."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        for epoch in itertools.count():
            for shuffled in (self.loader.sampler, self.loader.dataset):
                if hasattr(shuffled, "set_epoch"):
                    shuffled.set_epoch(epoch)
            yield from self.loader


def train_loader(
    dataset: Mapping[str, Any],
    input: Input,
    augmentation: Mapping[str, Any],
    *,
    total_batch_size: int,
    num_workers: int,
) -> TrainLoader | EpochLoader:
    """Makes the training loader, of (B, 3, H, W) images and (B,) labels for each process.

    It can start anywhere in a run, unless the data are a stream.

    Args:
        dataset: the config's node ``dataset``.
        input: size and normalisation.
        augmentation: keywords of ``timm.data.create_loader``.
        total_batch_size: images of all processes together.
        num_workers: of each process.

    Raises:
        UserError: the batch cannot be divided among the processes.
    """
    processes = comm.get_world_size()
    if total_batch_size % processes:
        raise UserError(
            f"dataloader.train.total_batch_size must be a multiple of the {processes} processes, "
            f"got {total_batch_size}"
        )
    loader = create_loader(
        open_split(dataset, "train"),
        input.size,
        total_batch_size // processes,
        is_training=True,
        use_prefetcher=False,
        mean=input.mean,
        std=input.std,
        distributed=processes > 1,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        **augmentation,
    )
    for step in loader.dataset.transform.transforms:
        mend_posterize(getattr(step, "ops", ()))
    if isinstance(loader.dataset, IterableDataset):
        return EpochLoader(loader)
    if augmentation.get("num_aug_repeats"):
        raise UserError("augmentation.num_aug_repeats must be 0: the order has no repetitions")
    return TrainLoader(
        loader.dataset,
        BatchOrder(len(loader.dataset), total_batch_size),
        collate=default_collate,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


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

    Raises:
        UserError: a stream is to be divided among processes.
    """
    images = open_split(dataset, "val")
    images.transform = input.transform()
    if isinstance(images, IterableDataset):
        if comm.get_world_size() > 1:
            raise UserError(
                f"{dataset['val']} is a stream, which several processes cannot divide exactly: "
                f"evaluate with --num-gpus 1"
            )
        images.set_loader_cfg(num_workers=num_workers)
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
    if isinstance(cfg.dataset.classes, str):
        return read_class_names(cfg.dataset.classes)
    if cfg.dataset.classes:
        return cfg.dataset.classes
    source = cfg.dataset.train
    if not is_timm_source(source):
        return read_samples(source)[1]
    split = "train" if training else "val"
    names = names_of(open_split(cfg.dataset, split))
    if not names and not cfg.model.num_classes:
        raise UserError(f"{source} does not name its classes: give model.num_classes")
    return names or [str(index) for index in range(cfg.model.num_classes)]
