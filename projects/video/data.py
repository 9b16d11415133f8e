"""The data of a run on videos: what depends on them in the config, and the loaders.

Axes: B clips, V views of a video, T frames, S × S pixels.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mvitv2_det.data.loader import BatchOrder, TrainLoader
from mvitv2_det.errors import UserError
from mvitv2_det.recognition.description import ClipInput
from mvitv2_det.video import open_video
from projects.common.runs import (
    check_pairs,
    describe,
    set_num_classes,
    set_schedule,
    trained_description,
)
from projects.common.sources import (
    Sample,
    count_samples,
    find_splits,
    given_classes,
    held_out,
)

from .augment import ClipAugmentation
from .manifests import read_manifest

# Detectron2's set-up gives handlers to the package's loggers alone.
logger = logging.getLogger(f"mvitv2_det.{__name__}")

# So many videos of a split, evenly spaced, are opened before training.
MOST_OPENED = 20


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
    classes = trained.classes if trained else _classes(cfg)
    cfg.dataset.classes = list(classes)
    set_num_classes(cfg, classes)
    cfg.description = describe(cfg, "video").to_dict()
    val = read_split(cfg.dataset, "val")
    _open_some(val, cfg.dataset, spare_some=False)
    if not training:
        # A layer that stays random would give a result like any other.
        cfg.train.strict = True
        return
    train = read_split(cfg.dataset, "train")
    _open_some(train, cfg.dataset, spare_some=True)
    set_schedule(cfg, len(train) * cfg.dataloader.train.repeats, "clips")
    logger.info("%d videos to train on, %d to validate on", len(train), len(val))


def read_split(dataset: Mapping[str, Any], split: str) -> list[Sample]:
    """Lists the videos of a split of the data that a config names.

    Args:
        dataset: the config's node ``dataset``, completed by :func:`prepare_datasets`.
        split: ``train`` or ``val``.

    Raises:
        UserError: as :func:`projects.video.manifests.read_manifest` does, or nothing is left.
    """
    source = dataset[split] or dataset["train"]
    samples, _ = read_manifest(source, classes=dataset["classes"], **_manifest_options(dataset))
    if not dataset["val"]:
        samples = held_out(samples, dataset["val_share"], inside=split == "val")
    if not samples:
        raise UserError(
            f"nothing of {source} is left for {split}: dataset.val_share is "
            f"{dataset['val_share']:g}; give dataset.val, or more videos"
        )
    logger.info("%s: %s, %s", split, source, count_samples(samples, "videos"))
    return samples


class TrainingClips(Dataset):
    """Random clips of videos.

    An item is (repeats, 3, T, S, S) inputs, all of the same frames, and (repeats,) labels.

    Args:
        samples: the videos.
        classes: names of the classes; labels are their indexes.
        dataset: the config's node ``dataset``.
        augmentation: of the frames.
        repeats: inputs that are made of a clip (repeated augmentation).
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        classes: Sequence[str],
        dataset: Mapping[str, Any],
        augmentation: ClipAugmentation,
        repeats: int,
    ) -> None:
        self.samples = list(samples)
        self.dataset = dataset
        self.augmentation = augmentation
        self.repeats = repeats
        numbers = {name: index for index, name in enumerate(classes)}
        self._labels = [numbers[sample.label] for sample in samples]
        self._of_class: dict[int, list[int]] = {}
        for index, label in enumerate(self._labels):
            self._of_class.setdefault(label, []).append(index)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Inputs of a random clip, and its label for each."""
        # The loader seeds NumPy for each sample.
        rng = np.random.default_rng(np.random.randint(2**31))
        with _open(self.samples[index], self.dataset) as video:
            frames = video.frames(self.augmentation.input.random_clip(video, rng))
        inputs = torch.stack([self.augmentation(frames) for _ in range(self.repeats)])
        return inputs, torch.full((self.repeats,), self._labels[index])

    def alternatives(self, index: int) -> list[int]:
        """Videos of the same class: one takes the place of a video that does not decode."""
        return self._of_class[self._labels[index]]


class TestClips(Dataset):
    """All views of videos.

    An item is (V, 3, T, S, S) inputs, the label and the video's number.

    Args:
        samples, classes, dataset: as in :class:`TrainingClips`.
        input: the preprocessing.
        shuffle_frames: frames of each clip are put in random order, always the same: what a
            network then loses is what it has learnt of the order of time.
    """

    __test__ = False  # it is no test of pytest

    def __init__(
        self,
        samples: Sequence[Sample],
        classes: Sequence[str],
        dataset: Mapping[str, Any],
        input: ClipInput,
        shuffle_frames: bool = False,
    ) -> None:
        self.samples = list(samples)
        self.dataset = dataset
        self.input = input
        self.shuffle_frames = shuffle_frames
        numbers = {name: index for index, name in enumerate(classes)}
        self._labels = [numbers[sample.label] for sample in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """Inputs, label and number of a video."""
        with _open(self.samples[index], self.dataset) as video:
            views = self.input.test_views(video)
        if self.shuffle_frames:
            rng = np.random.default_rng(index)
            views = torch.stack([view[:, rng.permutation(view.shape[1])] for view in views])
        return views, self._labels[index], index


def train_loader(
    dataset: Mapping[str, Any],
    input: ClipInput,
    augmentation: Mapping[str, Any],
    *,
    total_batch_size: int,
    repeats: int,
    num_workers: int,
) -> TrainLoader:
    """Makes the training loader, of (B, 3, T, S, S) clips and (B,) labels for each process.

    It can start anywhere in a run.

    Args:
        dataset: the config's node ``dataset``.
        input: the preprocessing.
        augmentation: keywords of :class:`~projects.video.augment.ClipAugmentation`.
        total_batch_size: clips of all processes together, each repetition counted.
        repeats: inputs that are made of a clip.
        num_workers: of each process.

    Raises:
        UserError: the batch cannot be divided among processes and repetitions.
    """
    processes = comm.get_world_size()
    if total_batch_size % (processes * repeats):
        raise UserError(
            f"dataloader.train.total_batch_size must be a multiple of {processes} processes × "
            f"{repeats} repeats, got {total_batch_size}"
        )
    samples = read_split(dataset, "train")
    clips = TrainingClips(
        samples,
        dataset["classes"],
        dataset,
        ClipAugmentation(input, **augmentation),
        repeats,
    )
    return TrainLoader(
        clips,
        BatchOrder(len(clips), total_batch_size // repeats),
        collate=_join,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def test_loader(
    dataset: Mapping[str, Any],
    input: ClipInput,
    *,
    batch_size: int,
    num_workers: int,
    shuffle_frames: bool,
) -> DataLoader:
    """Makes the validation loader: every view of every video once, for any number of processes.

    A batch is (B·V, 3, T, S, S) clips, video by video, (B,) labels and (B,) numbers of the videos.

    Args:
        dataset: the config's node ``dataset``.
        input: the preprocessing.
        batch_size: videos of a process.
        num_workers: of each process.
        shuffle_frames: see :class:`TestClips`.
    """
    samples = read_split(dataset, "val")
    clips = TestClips(samples, dataset["classes"], dataset, input, shuffle_frames)
    return DataLoader(
        clips,
        batch_size=batch_size,
        sampler=InferenceSampler(len(clips)),
        num_workers=num_workers,
        collate_fn=_join,
        pin_memory=torch.cuda.is_available(),
    )


def _join(items: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Puts the first axes of the items' tensors, and numbers, one after the other."""
    return tuple(
        torch.cat(parts) if isinstance(parts[0], Tensor) else torch.tensor(parts)
        for parts in zip(*items, strict=True)
    )


def _open(sample: Sample, dataset: Mapping[str, Any]):  # type: ignore[no-untyped-def]
    backend = dataset["backend"] or None
    is_folder = sample.path.is_dir()
    return open_video(sample.path, None if is_folder else backend, fps=dataset["fps"])


def _open_some(samples: Sequence[Sample], dataset: Mapping[str, Any], *, spare_some: bool) -> None:
    """Opens some videos.

    Raises:
        UserError: one cannot be decoded; where some are spared, none can.
    """
    step = -(-len(samples) // MOST_OPENED)
    some, failed = samples[::step], 0
    for sample in some:
        try:
            with _open(sample, dataset) as video:
                video.frames([0])
        except UserError:
            failed += 1
            if not spare_some or failed == len(some):
                raise


def _manifest_options(dataset: Mapping[str, Any]) -> dict[str, str]:
    return {name: dataset[name] for name in ("root", "format", "missing")}


def _find_data(cfg: DictConfig, training: bool) -> None:
    """Sets the sources of the splits; of an empty one for validation, a share is held out."""
    data = cfg.dataset
    if not training and data.val:
        data.train = data.val  # needed for the names of the classes alone
        return
    if not data.train:
        raise UserError(
            "dataset.train is missing: name a folder of classes, or a list of videos and labels"
        )
    data.train, data.val = find_splits(data.train, data.val)
    if not data.val:
        if not 0 < data.val_share < 1:
            raise UserError(
                f"there is no validation split beside {data.train}: give dataset.val, or a "
                f"dataset.val_share in (0, 1) to hold out, got {data.val_share}"
            )
        logger.info("no validation split: %g of each class are held out", data.val_share)


def _classes(cfg: DictConfig) -> Sequence[str]:
    """Names of the classes, in the order of the outputs."""
    if classes := given_classes(cfg.dataset.classes):
        return classes
    return read_manifest(cfg.dataset.train, **_manifest_options(cfg.dataset))[1]
