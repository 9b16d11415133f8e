"""Top-1 and top-5 accuracy, and the file and pictures of predictions.

Axes: N samples, C classes, K guesses of each sample.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mvitv2_det.visualize.results import CLASSIFICATIONS, draw_classifications

MOST_GUESSES = 5


def accuracies(labels: np.ndarray, top: np.ndarray, num_classes: int) -> dict[str, float]:
    """Returns ``top1`` and, of more than five classes, ``top5``, in percent.

    Args:
        labels: (N,) true classes.
        top: (N, K) the most probable classes, best first.
        num_classes: C.
    """
    hits = top == labels[:, None]
    found = {"top1": 100 * float(hits[:, 0].mean())}
    if num_classes > MOST_GUESSES:
        found["top5"] = 100 * float(hits.any(axis=1).mean())
    return found


def write_classifications(
    folder: Path,
    classes: Sequence[str],
    files: Sequence[str],
    labels: np.ndarray,
    label_probabilities: np.ndarray,
    top: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    """Writes what :func:`mvitv2_det.visualize.results.draw_classifications` reads, and draws it.

    Args:
        folder: made if it is missing.
        classes: C names.
        files: N files; empty if the samples are none.
        labels: (N,) true classes.
        label_probabilities: (N,) what they get.
        top: (N, K) the most probable classes, best first.
        probabilities: (N, K) what these get.
    """
    content = {
        "classes": list(classes),
        "files": list(files),
        "labels": labels.tolist(),
        "label_probabilities": label_probabilities.tolist(),
        "top": top.tolist(),
        "probabilities": probabilities.tolist(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CLASSIFICATIONS
    file.write_text(json.dumps(content), encoding="utf-8")
    draw_classifications(file, folder)
