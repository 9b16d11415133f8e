#!/usr/bin/env python3
"""Draws the curves and a gallery of a finished run of train_net.py, and prints its AP.

    python tools/draw_results.py output/demo
    python tools/draw_results.py output/demo --images 16 --score-threshold 0.3

Writes into the run's folder:

- ``curves.png``: training losses and validation AP over the iterations;
- ``gallery.png`` (and ``gallery_2.png``, … beyond 8 images): predictions of the last evaluation
  beside the ground truth, on images evenly spaced over the validation split ordered by image id.

The data are found where the run's config names them: start it from the folder that the training
was started from, where those paths are relative.
"""

import argparse
import sys
from pathlib import Path

from omegaconf import DictConfig

from mvitv2_det.config import load_config
from mvitv2_det.data import prepare_datasets
from mvitv2_det.errors import UserError
from mvitv2_det.visualize import (
    ap_table,
    draw_curves,
    draw_gallery,
    last_evaluated,
    read_metrics,
    read_results,
)


def draw(run: Path, images: int, score_threshold: float) -> None:
    """Draws everything and prints the table.

    Raises:
        UserError: something of the run or its data is missing or wrong.
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
    print(f"AP in percent of the last evaluation, at iteration {last_evaluated(records)}:\n")
    print(table, end="\n\n")
    print(f"losses and AP: {curves}")
    print(f"predictions:   {' '.join(map(str, gallery))}")


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


def main(arguments: list[str] | None = None) -> int:
    """Draws; returns the exit status, 2 where the user has something to put right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="output folder of the run")
    parser.add_argument("--images", type=int, default=8, help="in the gallery (default: 8)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, help="of predictions drawn (default: 0.5)"
    )
    args = parser.parse_args(arguments)
    try:
        if args.images < 1:
            raise UserError(f"--images must be 1 or more, got {args.images}")
        if not 0 <= args.score_threshold <= 1:
            raise UserError(f"--score-threshold must be in [0, 1], got {args.score_threshold:g}")
        draw(args.run, args.images, args.score_threshold)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
