"""Top-1 and top-5 accuracy, and the predictions that they are of.

Axes: N images, C classes, K guesses of each image.
"""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

MOST_GUESSES = 5
FILE = "predictions.json"


class ClassificationEvaluator(DatasetEvaluator):
    """Counts images whose class is among the first guesses, exactly on any number of processes.

    Each process must have a run of the images, in order, the first process the first, as
    Detectron2's ``InferenceSampler`` gives them.

    Args:
        num_classes: outputs of the model.
        output_dir: ``predictions.json`` is written there; empty writes nothing.
    """

    def __init__(self, num_classes: int, output_dir: str = "") -> None:
        self.guesses = min(MOST_GUESSES, num_classes)
        self.output_dir = output_dir
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self._labels: list[np.ndarray] = []
        self._top: list[np.ndarray] = []
        self._probabilities: list[np.ndarray] = []

    def process(self, inputs: tuple[Tensor, Tensor], outputs: Tensor) -> None:
        """Takes a batch.

        Args:
            inputs: images and (B,) labels.
            outputs: logits (B, C).
        """
        top = outputs.float().softmax(dim=1).topk(self.guesses, dim=1)
        self._labels.append(inputs[1].numpy())
        self._top.append(top.indices.cpu().numpy())
        self._probabilities.append(top.values.cpu().numpy())

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns ``{"classification": {"top1": …, "top5": …}}`` in percent, on one process.

        There is no top5 of five classes or fewer.
        """
        parts = (self._labels, self._top, self._probabilities)
        gathered = comm.gather([np.concatenate(part) if part else None for part in parts])
        if not comm.is_main_process():
            return None
        labels, top, probabilities = (
            np.concatenate([part for part in parts if part is not None])
            for parts in zip(*gathered, strict=True)
        )
        if self.output_dir:
            self._write(labels, top, probabilities)
        hits = top == labels[:, None]
        accuracies = {"top1": 100 * float(hits[:, 0].mean())}
        if top.shape[1] == MOST_GUESSES:
            accuracies["top5"] = 100 * float(hits.any(axis=1).mean())
        return OrderedDict(classification=accuracies)

    def _write(self, labels: np.ndarray, top: np.ndarray, probabilities: np.ndarray) -> None:
        folder = Path(self.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "labels": labels.tolist(),
            "top": top.tolist(),
            "probabilities": np.round(probabilities.astype(float), 6).tolist(),
        }
        (folder / FILE).write_text(json.dumps(content), encoding="utf-8")


