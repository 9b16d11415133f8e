"""Runs on several processes, started from one that has imported everything already."""

import multiprocessing
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp
from conftest import dataset_overrides, tiny_overrides
from torch import distributed as dist

from mvitv2_det.engine.launch import Place, _join

multiprocessing.set_forkserver_preload(["mvitv2_det.engine", "mvitv2_det.data", "conftest"])


def detection_config(folder: Path, *overrides: str) -> Any:
    """A small Mask R-CNN on the images of a folder, as the command would prepare it."""
    from mvitv2_det import get_config
    from mvitv2_det.config import apply_overrides
    from mvitv2_det.data import prepare_datasets

    cfg = get_config("mask_rcnn_mvitv2_t_3x")
    apply_overrides(
        cfg,
        [
            *tiny_overrides(cfg),
            *dataset_overrides(folder),
            "train.log_period=1",
            "train.max_iter=3",
            "train.eval_period=0",
            "train.checkpointer.period=2",
            *overrides,
        ],
    )
    prepare_datasets(cfg, training=True)
    return cfg


def _joined(rank: int, function: Any, count: int, url: str, args: tuple[Any, ...]) -> None:
    from datetime import timedelta

    _join(Place(rank, count, rank, count, url), timedelta(seconds=60))
    function(*args)
    dist.destroy_process_group()


def run(function: Any, folder: Path, *args: Any, count: int = 2, name: str = "meet") -> None:
    """Calls a function of a module in each of some processes; raises what one of them raises."""
    url = f"file://{folder}/{name}"
    mp.start_processes(
        _joined, (function, count, url, args), nprocs=count, start_method="forkserver"
    )
