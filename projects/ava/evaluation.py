"""Frame mAP of the actions found, and the detections that it is of.

Axes: N persons of a key frame, C actions.
"""

import csv
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor

from mvitv2_det.errors import UserError, naming_unwritable
from mvitv2_det.video.frame_map import Boxes, average_precisions, mean_average_precision

from .annotations import KeyFrame, Persons, read_actions, read_excluded, read_truths
from .data import Sample, read_split

logger = logging.getLogger(__name__)

DETECTIONS = "detections.csv"


class ActionEvaluator(DatasetEvaluator):
    """The frame mAP at IoU 0.5 over the actions of ``dataset.actions``, 60 of AVA.

    A person counts for each action with its probability; the detector's score chose the persons,
    and has no part in the ranking, as in PySlowFast. It is exact on any number of processes: key
    frames are known by their numbers.

    Args:
        dataset: the config's node ``dataset``.
        output_dir: the detections are written there, in the format of AVA's evaluation server.
    """

    def __init__(self, dataset: Mapping[str, Any], output_dir: str) -> None:
        self.dataset = dataset
        self.output_dir = Path(output_dir)
        self.reset()

    def reset(self) -> None:
        """Forgets all key frames."""
        self._found: dict[int, np.ndarray] = {}

    def process(self, inputs: Sequence[Sample], outputs: Sequence[Tensor]) -> None:
        """Takes a batch of clips and the probabilities (N, C) of each."""
        for sample, probabilities in zip(inputs, outputs, strict=True):
            self._found[sample.index] = probabilities.cpu().numpy()

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns ``{"actions": {"mAP": …}}`` in percent, on one process; logs each action's.

        Raises:
            UserError: a key frame was not seen, or the detections cannot be written.
        """
        found = {key: value for part in comm.gather(self._found) for key, value in part.items()}
        if not comm.is_main_process():
            return None
        persons = read_split(self.dataset, "val")
        if len(found) != len(persons):
            raise UserError(f"{len(found)} of {len(persons)} key frames were evaluated")
        names = read_actions(self.dataset["actions"])
        rows = [found[index] for index in range(len(persons))]
        precisions = average_precisions(
            _truths(self.dataset, persons), _detections(persons, rows, list(names)), list(names)
        )
        self._write(persons, rows, list(names))
        percent = {names[action]: 100 * value for action, value in precisions.items()}
        logger.info(
            "Average precision in percent; nan where no truth has the action:\n%s",
            tabulate(percent.items(), headers=("action", "AP"), floatfmt=".2f"),
        )
        return OrderedDict(actions={"mAP": 100 * mean_average_precision(precisions)})

    def _write(self, persons: Persons, rows: Sequence[np.ndarray], actions: list[int]) -> None:
        file = self.output_dir / DETECTIONS
        with naming_unwritable(file):
            self.output_dir.mkdir(parents=True, exist_ok=True)
            with file.open("w", newline="") as stream:
                writer = csv.writer(stream)
                for key, box, probabilities in _lines(persons, rows):
                    start = (key.video, f"{key.second:04d}", *(f"{side:.4f}" for side in box))
                    writer.writerows(
                        (*start, action, f"{probabilities[action - 1]:.4f}") for action in actions
                    )


def _lines(
    persons: Persons, rows: Sequence[np.ndarray]
) -> Iterator[tuple[KeyFrame, tuple[float, ...], np.ndarray]]:
    """Key frame, box and probabilities (C,) of each person."""
    for (key, each), probabilities in zip(persons.items(), rows, strict=True):
        for person, row in zip(each, probabilities, strict=True):
            yield key, person.box, row


def _detections(persons: Persons, rows: Sequence[np.ndarray], actions: list[int]) -> Boxes:
    """Each person once for each action."""
    lines = list(_lines(persons, rows))
    names = [f"{key.video},{key.second}" for key, _, _ in lines]
    scores = np.array([row for _, _, row in lines])[:, np.array(actions) - 1]
    return Boxes(
        np.repeat(names, len(actions)),
        np.repeat([box for _, box, _ in lines], len(actions), axis=0),
        np.tile(actions, len(lines)),
        scores.reshape(-1),
    )


def _truths(dataset: Mapping[str, Any], persons: Persons) -> Boxes:
    """What people have annotated at all key frames that are evaluated, persons found or not."""
    excluded, every = read_excluded(dataset["val_excluded"]), dataset["val_every"]
    rows = [
        (f"{key.video},{key.second}", person.box, action)
        for key, each in read_truths(dataset["val"]).items()
        if key not in excluded and key.second % every == 0
        for person in each
        for action in person.actions
    ]
    frames, boxes, actions = zip(*rows, strict=True)
    return Boxes(np.array(frames), np.array(boxes), np.array(actions), np.zeros(len(rows)))
