"""The data of a run: what depends on them in the config, and the loaders.

Axes: B images, H × W pixels.
"""

import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageOps
from timm.data import create_loader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from mvitv2_det.data.loader import BatchOrder, TrainLoader
from mvitv2_det.errors import UserError
from mvitv2_det.recognition.description import ENTRY, Description, Input
from mvitv2_det.weights.files import read_checkpoint

from .sources import (
    Images,
    check_readable,
    describe,
    find_splits,
    held_out,
    is_timm_source,
    names_of,
    open_timm,
    read_class_names,
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
            _check_pairs(cfg, comm.get_world_size())
        return
    _find_data(cfg, training)
    trained = _trained_description(cfg, training)
    classes = trained.classes if trained else _classes(cfg, training)
    cfg.dataset.classes = list(classes)
    _set_num_classes(cfg, classes)
    cfg.description = _describe(cfg).to_dict()
    val = open_split(cfg.dataset, "val", check=True)
    if not training:
        # A layer that stays random would give a result like any other.
        cfg.train.strict = True
        return
    train = open_split(cfg.dataset, "train", check=True)
    _set_schedule(cfg, len(train))
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
    logger.info("%s: %s, %s", split, source, describe(samples))
    return Images(samples, classes)


class EpochLoader:
    """Batches of a stream for training without end, shuffled anew in each epoch."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
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
        for operation in getattr(step, "ops", ()):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
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


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keeps so many bits of each colour; none makes the image black.

    timm's RandAugment asks for none where its magnitude reaches 10, as in a few of a hundred
    draws of the recipe's. Older releases of Pillow take that as it is meant, newer ones refuse.
    """
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


class StoredDescription:
    """The entry of checkpoints by which they say what they are; see :class:`Description`.

    Args:
        content: what :meth:`Description.to_dict` gives.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = Description.from_dict(_plain(content)).to_dict()

    def state_dict(self) -> dict[str, Any]:
        """Returns the entry that a checkpoint stores."""
        return self.content

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Checks that a run that is resumed is of the same network and classes.

        Raises:
            UserError: it is not.
        """
        old, new = list(stored["classes"]), self.content["classes"]
        if old != new:
            raise UserError(
                f"the run to resume was of {len(old)} classes ({', '.join(old[:3])}, …), the data "
                f"are of {len(new)} ({', '.join(new[:3])}, …): name another train.output_dir"
            )


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _trained_description(cfg: DictConfig, training: bool) -> Description | None:
    """What weights that are to be evaluated say of themselves; None if they say nothing."""
    weights = cfg.train.init_checkpoint
    # Of a classifier of which the first outputs are taken, others may be the data's classes.
    if training or cfg.train.load.classes == "first" or not os.path.isfile(weights):
        return None
    entry = read_checkpoint(weights)[1].get(ENTRY)
    return None if entry is None else Description.from_dict(entry)


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


def _set_num_classes(cfg: DictConfig, classes: Sequence[str]) -> None:
    given = cfg.model.num_classes
    if given not in (None, len(classes)):
        raise UserError(
            f"model.num_classes is {given}, but {cfg.dataset.train} has {len(classes)} classes: "
            f"leave it out, and the data decide"
        )
    cfg.model.num_classes = len(classes)


def _describe(cfg: DictConfig) -> Description:
    """Describes the config's network and preprocessing in plain values."""
    arguments = _plain(cfg.model)
    arguments.pop("_target_")
    if isinstance(arguments["variant"], dict):
        arguments["variant"].pop("_target_")
    return Description("image", arguments, tuple(cfg.dataset.classes), instantiate(cfg.input))


def _check_pairs(cfg: DictConfig, processes: int) -> None:
    """Refuses batches that mixup cannot pair, which each process does with its share."""
    batch = cfg.dataloader.train.total_batch_size
    if cfg.task.mixup and batch // processes % 2:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"dataloader.train.total_batch_size must be even{each}, as mixup takes pairs, got "
            f"{batch}; task.mixup=null does without"
        )


def _set_schedule(cfg: DictConfig, images: int) -> None:
    """Sets what is given in epochs or for a batch of 256, and was not given otherwise."""
    batch, recipe = cfg.dataloader.train.total_batch_size, cfg.recipe
    _check_pairs(cfg, processes=1)
    if batch > images:
        raise UserError(
            f"dataloader.train.total_batch_size is {batch}, but there are {images} images to "
            f"train on: make it smaller"
        )
    epoch = images // batch
    defaults = {
        "optimizer.lr": recipe.lr_per_256 * batch / 256,
        "train.max_iter": recipe.epochs * epoch,
        "train.eval_period": recipe.eval_epochs * epoch,
        "train.checkpointer.period": recipe.eval_epochs * epoch,
    }
    for key, value in defaults.items():
        if OmegaConf.select(cfg, key) is None:
            OmegaConf.update(cfg, key, value)
