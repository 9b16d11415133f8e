"""The curves, the pictures of predictions and the AP or accuracies of a finished training."""

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from ..config import load_config
from ..data import prepare_datasets
from ..errors import UserError
from .classification import Classified, draw_confusion_matrix, write_mistakes
from .curves import ap_table, draw_curves, last_evaluated
from .gallery import draw_gallery
from .run_files import read_metrics, read_results

# What a classifier's evaluation leaves in the run's folder ``inference``.
CLASSIFICATIONS = "classifications.json"
_GUESSES = 3  # shown of each mistake


@dataclass(frozen=True)
class DrawnResults:
    """What :func:`draw_results` has made.

    Attributes:
        iteration: when the last evaluation was.
        ap_table: its AP or accuracies in percent, as text.
        curves: the file drawn.
        predictions: the files drawn: a gallery; of a classifier, what it confuses and its mistakes.
    """

    iteration: int
    ap_table: str
    curves: Path
    predictions: list[Path]


def draw_results(
    run: Path, images: int, score_threshold: float, trust: Collection[str] = ()
) -> DrawnResults:
    """Draws ``curves.png`` and ``gallery.png`` into the output folder of a training.

    For a classifier, :func:`draw_classifications` draws in place of the gallery.

    Args:
        run: the folder, with the files that training leaves there.
        images: how many images the gallery, or the sheet of mistakes, shows, at most.
        score_threshold: predictions that score lower are not drawn, in [0, 1].
        trust: what the run's config may call beside what :mod:`mvitv2_det.allowed_names` knows.

    Raises:
        UserError: something of the run or of its data is missing or wrong.
        OSError: the folder cannot be written to.
    """
    cfg = _read_config(run, trust)
    records = read_metrics(run / "metrics.json")
    table = ap_table(records)
    name = run.resolve().name
    curves = run / "curves.png"
    if (run / "inference" / CLASSIFICATIONS).exists():
        draw_curves(records, f"{name}: {_describe(cfg, cfg.dataset.val)}", curves)
        drawn = draw_classifications(run / "inference" / CLASSIFICATIONS, run, images)
        return DrawnResults(last_evaluated(records), table, curves, drawn)
    results = read_results(run / "inference" / "coco_instances_results.json")
    prepare_datasets(cfg, training=False)
    draw_curves(records, f"{name}: {_describe(cfg, cfg.dataloader.test.dataset.names)}", curves)
    gallery = draw_gallery(
        cfg.dataloader.test.dataset.names,
        results,
        run,
        title=f"{name}: predictions with score ≥ {score_threshold:g} beside the ground truth",
        images=images,
        score_threshold=score_threshold,
    )
    return DrawnResults(last_evaluated(records), table, curves, gallery)


def draw_classifications(file: Path, folder: Path, images: int = 48) -> list[Path]:
    """Draws ``confusion.png``, what a classifier confuses, and ``mistakes.png``, the worst of them.

    Args:
        file: what an evaluation has written: ``classes``, their names; and for N images ``labels``,
            numbers of the true classes, ``label_probabilities``, what the classifier gives them,
            ``top``, numbers of the most probable classes, best first, ``probabilities`` of these,
            and ``files``. Without files there is no picture of mistakes.
        folder: where the pictures are written.
        images: the mistakes shown, at most.

    Returns:
        the pictures.

    Raises:
        UserError: the file is not of this kind.
        OSError: it cannot be read, or a picture cannot be written.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        classes, labels, top = content["classes"], content["labels"], content["top"]
        counts = np.zeros((len(classes), len(classes)), dtype=int)
        for (label, guess), count in Counter(
            (t, g[0]) for t, g in zip(labels, top, strict=True)
        ).items():
            counts[label, guess] = count
        rows = [
            Classified(path, guesses[:_GUESSES], shares[:_GUESSES], label, share)
            for path, guesses, shares, label, share in zip(
                content["files"],
                top,
                content["probabilities"],
                labels,
                content["label_probabilities"],
                strict=bool(content["files"]),
            )
        ]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{file} is not what a classifier's evaluation writes: {error}") from error
    pictures = [folder / "confusion.png", folder / "mistakes.png"]
    draw_confusion_matrix(counts, classes, pictures[0])
    if not rows:
        return pictures[:1]
    write_mistakes(rows, classes, pictures[1], images)
    return pictures


def _read_config(run: Path, trust: Collection[str]) -> DictConfig:
    cfg = load_config(str(run / "config.yaml"), trust)
    if "dataloader" not in cfg or "train" not in cfg:
        raise UserError(
            f"{run / 'config.yaml'} is no LazyConfig: expected the output folder of a run of "
            f"train_net.py"
        )
    return cfg


def _describe(cfg: DictConfig, val: str) -> str:
    batch = cfg.dataloader.train.total_batch_size
    return f"{cfg.train.max_iter:,} iterations, batch size {batch}, validated on {Path(val).name}"
