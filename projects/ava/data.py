"""The data of a run on AVA, or on videos that are annotated as AVA is, and the loaders.

Axes: T frames, H × W pixels, N persons, C actions.
"""

import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data.samplers import InferenceSampler
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mvitv2_det.data.loader import BatchOrder, TrainLoader
from mvitv2_det.errors import Unreadable, UserError
from mvitv2_det.predict.inputs import VIDEO_ENDINGS
from mvitv2_det.recognition.description import ClipInput
from mvitv2_det.video import open_video
from mvitv2_det.video.clips import normalise
from mvitv2_det.video.key_frames import VIEWS, at_view, cropped, inside, key_frame_clip, resized
from projects.common.runs import describe, set_schedule, trained_description

from .annotations import (
    Person,
    Persons,
    read_actions,
    read_excluded,
    read_persons,
    read_truths,
    training_persons,
)

logger = logging.getLogger(__name__)


class Sample(NamedTuple):
    """A clip around a key frame, and the persons in it.

    Attributes:
        clip: (3, T, H, W), normalised.
        boxes: (N, 4) left, top, right, bottom in pixels of the clip.
        targets: (N, C) 1 for each action that a person does, else 0.
        index: number of the key frame in its split.
    """

    clip: Tensor
    boxes: Tensor
    targets: Tensor
    index: int


def prepare_datasets(cfg: DictConfig, *, training: bool, check: bool = True) -> None:
    """Completes a config by its data: actions, and the length of the run.

    Args:
        cfg: the config, which is changed in place.
        training: whether the training split is needed in addition to the validation split.
        check: one process of a run is enough; others get the completed config.

    Raises:
        UserError: data are missing or wrong, or do not fit the config.
    """
    if not check:
        return
    view = cfg.dataloader.test.view
    if view not in VIEWS:
        raise UserError(f"dataloader.test.view must be {' or '.join(VIEWS)}, got {view!r}")
    names = read_actions(cfg.dataset.actions)
    trained = trained_description(cfg, training)
    outputs = len(trained.classes) if trained else cfg.model.num_classes or max(names)
    if outputs < max(names):
        raise UserError(
            f"{cfg.dataset.actions} has action {max(names)}, but the network has {outputs} "
            f"outputs: set model.num_classes"
        )
    cfg.model.num_classes = outputs
    # AVA evaluates 60 of its 80 actions, and its list names these alone.
    cfg.dataset.classes = [names.get(k, f"action {k}") for k in range(1, outputs + 1)]
    cfg.description = describe(cfg, "actions").to_dict()
    val = read_split(cfg.dataset, "val")
    find_videos(cfg.dataset, val)
    _check_actions(val, outputs, cfg.dataset.val)
    if not training:
        # A layer that stays random would give a result like any other.
        cfg.train.strict = True
        return
    train = read_split(cfg.dataset, "train")
    find_videos(cfg.dataset, train)
    _check_actions(train, outputs, cfg.dataset.train)
    set_schedule(cfg, len(train), "key frames")
    logger.info("%d key frames to train on, %d to validate on", len(train), len(val))


def read_split(dataset: Mapping[str, Any], split: str) -> Persons:
    """Persons at the key frames of a split.

    Of ``train`` they have their actions; those of ``val`` are the detector's, or the truth's where
    no detector's are given.

    Args:
        dataset: the config's node ``dataset``.
        split: ``train`` or ``val``.

    Raises:
        UserError: a file cannot be read or is wrong, or nothing is left.
    """
    truths = read_truths(dataset[split])
    given = dataset[f"{split}_persons"]
    persons = read_persons(given, dataset["least_score"]) if given else {}
    if split == "train":
        persons = training_persons(truths, persons)
    elif not given:
        logger.warning("dataset.val_persons is empty: actions of the persons of the truth")
        persons = truths
    excluded = read_excluded(dataset[f"{split}_excluded"])
    every = dataset["val_every"] if split == "val" else 1
    kept = {
        key: persons[key]
        for key in sorted(persons)
        if key not in excluded and key.second % every == 0
    }
    if not kept:
        raise UserError(f"dataset.{split}: no key frame of {given or dataset[split]} is left")
    return kept


def find_videos(dataset: Mapping[str, Any], keys: Persons) -> dict[str, Path]:
    """Files, or folders of frames, of the videos that key frames are of.

    Raises:
        UserError: one is not in ``dataset.videos``.
    """
    root = Path(dataset["videos"])
    entries = sorted(root.iterdir()) if root.is_dir() else []
    there = {entry.stem: entry for entry in entries if entry.suffix.lower() in VIDEO_ENDINGS}
    there |= {entry.name: entry for entry in entries if entry.is_dir()}
    found = {}
    for key in keys:
        if key.video not in there:
            raise UserError(
                f"dataset.videos: there is no video or folder of frames {root / key.video} for the "
                f"key frame at second {key.second}"
            )
        found[key.video] = there[key.video]
    return found


class Augmentation:
    """A random square of a clip of random size, mirrored or not, as in PySlowFast.

    Args:
        input: size and colours.
        short_side: least and largest short side before the crop; its inverse is drawn evenly.
        hflip: share of clips that are mirrored.

    Raises:
        UserError: the range of the short side is none.
    """

    def __init__(
        self, input: ClipInput, short_side: Sequence[int] = (256, 320), hflip: float = 0.5
    ) -> None:
        if len(short_side) != 2 or not input.size <= short_side[0] <= short_side[1]:
            raise UserError(
                f"dataloader.train.augmentation.short_side must be two sides from input.size "
                f"{input.size} on, ascending, got {list(short_side)}"
            )
        self.input, self.short_side, self.hflip = input, short_side, hflip

    def __call__(self, frames: np.ndarray, boxes: np.ndarray) -> tuple[Tensor, Tensor]:
        """Frames (T, H, W, 3) and boxes (N, 4), as :func:`at_view` takes and returns them."""
        least, most = self.short_side
        short = round(1 / random.uniform(1 / most, 1 / least))
        clip, placed = resized(frames, boxes, short, self.input.interpolation)
        corner = [random.randint(0, side - self.input.size) for side in clip.shape[-2:]]
        clip, placed = cropped(clip, placed, corner, self.input.size)
        if random.random() < self.hflip:
            clip = clip.flip(-1)
            # PySlowFast's pixels end at width - 1.
            left, top, right, bottom = placed.unbind(1)
            last = clip.shape[-1] - 1
            placed = torch.stack((last - right, top, last - left, bottom), dim=1)
        return normalise(clip, self.input.mean, self.input.std), inside(placed, clip)


class KeyFrameClips(Dataset):
    """Clips around key frames, with their persons; items are :class:`Sample`.

    Args:
        persons: at each key frame.
        dataset: the config's node ``dataset``.
        input: the preprocessing.
        transform: makes clip and boxes of frames and boxes; see :func:`at_view`.
    """

    def __init__(
        self, persons: Persons, dataset: Mapping[str, Any], input: ClipInput, transform: Any
    ) -> None:
        self.keys, self.persons = list(persons), list(persons.values())
        self.dataset, self.input, self.transform = dataset, input, transform
        self._videos = find_videos(dataset, persons)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        """Reads the clip of a key frame."""
        key, persons = self.keys[index], self.persons[index]
        path = self._videos[key.video]
        fps = self.dataset["fps"] if path.is_dir() else None
        with open_video(path, None if fps else self.dataset["backend"] or None, fps=fps) as video:
            seconds = key.second - self.dataset["start"]
            if not 0 <= seconds <= video.duration:
                raise Unreadable(
                    f"{path} of {video.duration:.1f} s has no second {key.second}, as videos start "
                    f"at second {self.dataset['start']} (dataset.start)"
                )
            frames = video.frames(key_frame_clip(video, seconds, self.input))
        boxes = np.array([person.box for person in persons])
        clip, placed = self.transform(frames, boxes)
        return Sample(clip, placed, self._targets(persons), index)

    def _targets(self, persons: Sequence[Person]) -> Tensor:
        targets = torch.zeros(len(persons), len(self.dataset["classes"]))
        for row, person in zip(targets, persons, strict=True):
            row[[action - 1 for action in person.actions]] = 1
        return targets


class _View:
    """:func:`at_view` with its last arguments, so that workers can be sent it."""

    def __init__(self, input: ClipInput, view: str) -> None:
        self.input, self.view = input, view

    def __call__(self, frames: np.ndarray, boxes: np.ndarray) -> tuple[Tensor, Tensor]:
        return at_view(frames, boxes, self.input, self.view)


def train_loader(
    dataset: Mapping[str, Any],
    input: ClipInput,
    augmentation: Mapping[str, Any],
    *,
    total_batch_size: int,
    num_workers: int,
) -> TrainLoader:
    """Makes the training loader, of lists of :class:`Sample` for each process.

    It can start anywhere in a run.

    Args:
        dataset: the config's node ``dataset``.
        input: the preprocessing.
        augmentation: keywords of :class:`Augmentation`.
        total_batch_size: clips of all processes together.
        num_workers: of each process.

    Raises:
        UserError: the batch cannot be divided among processes.
    """
    transform = Augmentation(input, **augmentation)
    clips = KeyFrameClips(read_split(dataset, "train"), dataset, input, transform)
    return TrainLoader(clips, BatchOrder(len(clips), total_batch_size), num_workers=num_workers)


def test_loader(
    dataset: Mapping[str, Any], input: ClipInput, *, view: str, batch_size: int, num_workers: int
) -> DataLoader:
    """Makes the validation loader: each key frame once, for any number of processes.

    Args:
        dataset: the config's node ``dataset``.
        input: the preprocessing.
        view: one of :data:`VIEWS`; see :func:`at_view`.
        batch_size: clips of a process; of view ``full`` those of one size go through together.
        num_workers: of each process.
    """
    clips = KeyFrameClips(read_split(dataset, "val"), dataset, input, _View(input, view))
    return DataLoader(
        clips,
        batch_size=batch_size,
        sampler=InferenceSampler(len(clips)),
        num_workers=num_workers,
        collate_fn=list,
    )


def _check_actions(persons: Persons, outputs: int, source: str) -> None:
    for key, each in persons.items():
        for person in each:
            if person.actions and max(person.actions) > outputs:
                raise UserError(
                    f"{source}: video {key.video}, second {key.second} has action "
                    f"{max(person.actions)}, but there are {outputs}: correct dataset.actions or "
                    f"model.num_classes"
                )
