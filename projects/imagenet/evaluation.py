"""Top-1 and top-5 accuracy, and the predictions that they are of.

Axes: N images, C classes, K guesses of each image.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from mvitv2_det.errors import UserError
from projects.common.accuracies import MOST_GUESSES, accuracies, write_classifications

from .data import open_split
from .sources import Images


class ClassificationEvaluator(DatasetEvaluator):
    """Counts images whose class is among the first guesses, exactly on any number of processes.

    Each process must have a run of the images, in order, the first process the first, as
    Detectron2's ``InferenceSampler`` gives them.

    Args:
        dataset: the config's node ``dataset``.
        output_dir: what the pictures show of each image is written there, and the pictures.
    """

    def __init__(self, dataset: Mapping[str, Any], output_dir: str) -> None:
        self.dataset = dataset
        self.output_dir = Path(output_dir)
        self.reset()

    def reset(self) -> None:
        """Forgets all images."""
        self._batches: list[tuple[np.ndarray, ...]] = []
        self._outputs = 0

    def process(self, inputs: tuple[Tensor, Tensor], outputs: Tensor) -> None:
        """Takes a batch.

        Args:
            inputs: images and (B,) labels.
            outputs: logits (B, C).

        Raises:
            UserError: the class of an image has no output.
        """
        labels, self._outputs = inputs[1], outputs.shape[1]
        if (largest := int(labels.max())) >= self._outputs:
            raise UserError(
                f"validation has an image of class {self.dataset['classes'][largest]!r}, output "
                f"{largest}, and evaluation looks at the first {self._outputs} alone: see "
                f"task.first_outputs"
            )
        probabilities = outputs.float().softmax(dim=1).cpu()
        top = probabilities.topk(min(MOST_GUESSES, outputs.shape[1]), dim=1)
        of_labels = probabilities.gather(1, labels[:, None])[:, 0]
        batch = (labels, of_labels, top.indices, top.values)
        self._batches.append(tuple(each.numpy() for each in batch))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns ``{"classification": {"top1": …, "top5": …}}`` in percent, on one process.

        There is no top5 of five classes or fewer.
        """
        batches = [batch for batches in comm.gather(self._batches) for batch in batches]
        if not comm.is_main_process():
            return None
        labels, of_labels, top, probabilities = map(np.concatenate, zip(*batches, strict=True))
        # Evaluation may look at the first outputs alone.
        classes = list(self.dataset["classes"])[: self._outputs]
        self._draw(classes, labels, of_labels, top, probabilities)
        return OrderedDict(classification=accuracies(labels, top, len(classes)))

    def _draw(
        self,
        classes: list[str],
        labels: np.ndarray,
        of_labels: np.ndarray,
        top: np.ndarray,
        probabilities: np.ndarray,
    ) -> None:
        images = open_split(self.dataset, "val")
        # timm's readers may have names that are no files.
        files = images.filenames() if isinstance(images, Images) else []
        write_classifications(
            self.output_dir, classes, files, labels, of_labels, top, probabilities
        )
