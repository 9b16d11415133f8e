"""The curves, the gallery and the AP of a finished training."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from ..config import load_config
from ..data import prepare_datasets
from ..errors import UserError
from .curves import ap_table, draw_curves, last_evaluated
from .gallery import draw_gallery
from .run_files import read_metrics, read_results


@dataclass(frozen=True)
class DrawnResults:
    """What :func:`draw_results` has made.

    Attributes:
        iteration: when the last evaluation was.
        ap_table: its AP in percent, as text.
        curves, gallery: the files drawn.
    """

    iteration: int
    ap_table: str
    curves: Path
    gallery: list[Path]


def draw_results(run: Path, images: int, score_threshold: float) -> DrawnResults:
    """Draws ``curves.png`` and ``gallery.png`` into the output folder of a training.

    Args:
        run: the folder, with the files that training leaves there.
        images: how many images the gallery shows, at most.
        score_threshold: predictions that score lower are not drawn, in [0, 1].

    Raises:
        UserError: something of the run or of its data is missing or wrong.
        OSError: the folder cannot be written to.
    """
    cfg = _read_config(run)
    records = read_metrics(run / "metrics.json")
    table = ap_table(records)
    results = read_results(run / "inference" / "coco_instances_results.json")
    prepare_datasets(cfg, training=False)
    name = run.resolve().name
    curves = run / "curves.png"
    draw_curves(records, f"{name}: {_describe(cfg)}", curves)
    gallery = draw_gallery(
        cfg.dataloader.test.dataset.names,
        results,
        run,
        title=f"{name}: predictions with score ≥ {score_threshold:g} beside the ground truth",
        images=images,
        score_threshold=score_threshold,
    )
    return DrawnResults(last_evaluated(records), table, curves, gallery)


def _read_config(run: Path) -> DictConfig:
    cfg = load_config(str(run / "config.yaml"))
    if "dataloader" not in cfg or "train" not in cfg:
        raise UserError(
            f"{run / 'config.yaml'} is no LazyConfig: expected the output folder of a run of "
            f"train_net.py"
        )
    return cfg


def _describe(cfg: DictConfig) -> str:
    batch = cfg.dataloader.train.total_batch_size
    val = Path(cfg.dataloader.test.dataset.names).name
    return f"{cfg.train.max_iter:,} iterations, batch size {batch}, validated on {val}"
