"""Top-1 and top-5 accuracy of videos and of their clips, and the predictions that they are of.

The probabilities of a video are the mean of those of its views: clips × crops.

Axes: N videos, V views of each, C classes, K guesses of each video.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from mvitv2_det.errors import UserError
from mvitv2_det.visualize.classification import Classified, draw_classified
from projects.common.accuracies import MOST_GUESSES, accuracies, write_classifications

from .data import read_split

_SHOWN = 18  # videos of the page of predictions


class _Batch(NamedTuple):
    """Videos: their numbers, (N,) labels, what these get, and the guesses (N, K); (N, V, K)."""

    indices: np.ndarray
    labels: np.ndarray
    of_labels: np.ndarray
    top: np.ndarray
    probabilities: np.ndarray
    top_of_views: np.ndarray


class VideoEvaluator(DatasetEvaluator):
    """Counts videos and clips whose class is among the first guesses.

    It is exact on any number of processes: videos are known by their numbers, and one that several
    processes have had counts once.

    Args:
        dataset: the config's node ``dataset``.
        output_dir: what the pictures show of each video is written there, and the pictures.
    """

    def __init__(self, dataset: Mapping[str, Any], output_dir: str) -> None:
        self.dataset = dataset
        self.output_dir = Path(output_dir)
        self.reset()

    def reset(self) -> None:
        """Forgets all videos."""
        self._batches: list[_Batch] = []
        self._outputs = 0

    def process(self, inputs: tuple[Tensor, Tensor, Tensor], outputs: Tensor) -> None:
        """Takes a batch of N videos.

        Args:
            inputs: clips, (N,) labels, and (N,) numbers of the videos.
            outputs: logits (N·V, C), video by video.
        """
        _, labels, indices = inputs
        self._outputs = outputs.shape[1]
        guesses = min(MOST_GUESSES, self._outputs)
        # (N, V, C)
        views = outputs.float().softmax(dim=1).cpu().unflatten(0, (len(labels), -1))
        mean = views.mean(dim=1)
        top = mean.topk(guesses, dim=1)
        of_labels = mean.gather(1, labels[:, None])[:, 0]
        of_views = views.topk(guesses, dim=2).indices
        batch = (indices, labels, of_labels, top.indices, top.values, of_views)
        self._batches.append(_Batch(*(each.numpy() for each in batch)))

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns ``{"classification": {…}}`` in percent, on one process.

        ``top1`` and ``top5`` are of videos, ``clip_top1`` and ``clip_top5`` of single views. There
        is no top5 of five classes or fewer.

        Raises:
            UserError: a video was not seen.
        """
        batches = [batch for batches in comm.gather(self._batches) for batch in batches]
        if not comm.is_main_process():
            return None
        joined = _Batch(*map(np.concatenate, zip(*batches, strict=True)))
        _, first = np.unique(joined.indices, return_index=True)
        found = _Batch(*(each[first] for each in joined))
        samples = read_split(self.dataset, "val")
        if len(found.indices) != len(samples):
            raise UserError(f"{len(found.indices)} of {len(samples)} videos were evaluated")
        # Evaluation may look at the first outputs alone.
        classes = list(self.dataset["classes"])[: self._outputs]
        files = [str(sample.path) for sample in samples]
        write_classifications(
            self.output_dir,
            classes,
            files,
            found.labels,
            found.of_labels,
            found.top,
            found.probabilities,
        )
        self._draw(found, classes, files)
        of_videos = accuracies(found.labels, found.top, len(classes))
        views = found.top_of_views.shape[1]
        of_clips = accuracies(
            found.labels.repeat(views), found.top_of_views.reshape(-1, found.top.shape[1]),
            len(classes),
        )  # fmt: skip
        clips = {f"clip_{name}": value for name, value in of_clips.items()}
        return OrderedDict(classification=of_videos | clips)

    def _draw(self, found: _Batch, classes: list[str], files: list[str]) -> None:
        """Draws a page of videos, evenly spaced among all, with what is found in them."""
        count = len(files)
        chosen = np.unique(np.linspace(0, count - 1, min(_SHOWN, count)).astype(int))
        rows = [
            Classified(
                files[index],
                found.top[index][:3].tolist(),
                found.probabilities[index][:3].tolist(),
                int(found.labels[index]),
                float(found.of_labels[index]),
            )
            for index in chosen.tolist()
        ]
        title = f"{len(rows)} of {count:,} videos, each as four frames in the order of reading"
        draw_classified(rows, classes, self.output_dir / "predictions.png", title)
