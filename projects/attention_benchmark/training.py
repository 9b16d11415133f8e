"""Trains the rows of a table at a small scale on given data, with several seeds, in turns.

A row keeps what tells it apart from the paper's default row: windows, strides, positions,
connections. Its size, the images, the heads and the schedule are those of a small detector's
config, such as ``configs/demo.py``. Each training is a run of its own by ``mvitv2-det train``: it
has a folder with curves and weights, and goes on where it was when the command is given again.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf
from scipy.stats import t as student

from mvitv2_det import MViT, ResampledPyramid, get_config
from mvitv2_det.errors import UserError, naming_unwritable
from mvitv2_det.trained import read_config
from projects.attention_benchmark.tables import Row, Table

ROOT = Path(__file__).resolve().parents[2]
METRIC = "bbox/AP"
# Of a plain ViT's tokens, in tokens of stage 1: a window then covers as many pixels.
_STRIDE_OF_VIT = 4
# Channels of a plain ViT over those of stage 1: it then has about 2.5 times the parameters of the
# small MViT, as ViT-B has of S's.
_WIDER = 6
# The fewest in which each quarter of the depth has a block with windows and one without.
_DEPTH_OF_VIT = 8
_SIZES = ("embed_dim", "depth", "num_heads", "last_block_indexes", "drop_path_rate", "img_size")


@dataclass(frozen=True)
class Trainings:
    """Settings of the trainings of a table's rows.

    Attributes:
        config: the small detector's, a file or a name.
        overrides: ``key=value`` of that config, such as the paths of the data.
        seeds: trainings of each row, with seeds from 1 on.
        jobs: trainings at the same time.
        folder: of the runs.
    """

    config: str
    overrides: tuple[str, ...]
    seeds: int
    jobs: int
    folder: Path

    @cached_property
    def base(self) -> DictConfig:
        """The small detector's config.

        Raises:
            UserError: it cannot be read, or is not a detector with a feature pyramid on an MViT.
        """
        cfg = read_config(self.config, self.overrides)
        bottom_up = OmegaConf.select(cfg, "model.backbone.bottom_up")
        if bottom_up is None or not _is(bottom_up, MViT):
            raise UserError(
                f"--train {self.config} is no detector with a feature pyramid on an MViT: take "
                f"one like configs/demo.py"
            )
        return cfg

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return int(self.base.model.backbone.bottom_up.img_size)

    def config_of(self, row: Row, table: Table) -> DictConfig:
        """The small detector with the backbone of a row.

        Raises:
            UserError: the row is of another size or kind than the default row and a plain ViT.
        """
        if table.task != "detection":
            raise UserError(f"--train trains detectors: table {table.number} has --task detection")
        cfg = deepcopy(self.base)
        backbone, size = cfg.model.backbone, cfg.model.backbone.bottom_up
        of_row = get_config(row.config).model.backbone.bottom_up
        of_default = get_config(table.default.config).model.backbone.bottom_up
        if _is(of_row, ResampledPyramid):
            _as_small_as(size, of_row.bottom_up)
            backbone.bottom_up = of_row
            backbone.bottom_up.norm = backbone.norm
            backbone.in_features = ["scale2", "scale3", "scale4", "scale5"]
            return cfg
        changes = {
            key: value
            for key, value in of_row.items()
            if key not in of_default or of_default[key] != value
        }
        if not _is(of_row, MViT) or set(changes) & {*_SIZES, "_target_"}:
            raise UserError(
                f"table {table.number}, {row.name}: --train compares attention of networks of one "
                f"size, and this row is of another; tables 4b, 6, 7 and A.4 can be trained"
            )
        size.update(changes)
        return cfg

    def run(self, table: Table, report: Callable[[str], None] = print) -> dict[str, list[float]]:
        """Trains all rows that are not trained yet.

        Returns:
            box AP of each seed, by the name of the row.

        Raises:
            UserError: a training fails, or the folder has runs of other settings.
        """
        configs = {row.name: self.config_of(row, table) for row in table.rows}
        # Rows take turns, so that each has as many seeds when this ends early.
        runs = [(row, seed) for seed in range(1, self.seeds + 1) for row in table.rows]
        for row, seed in runs:
            self._write_config(configs[row.name], self._folder(row, seed), seed)

        def train(run: tuple[Row, int]) -> tuple[str, float]:
            row, seed = run
            folder = self._folder(row, seed)
            if not (folder / "model_final.pth").is_file():
                _train(folder)
            found = _last_metric(folder)
            report(f"  trained  {row.name}, seed {seed}: box AP {found:.1f}")
            return row.name, found

        found: dict[str, list[float]] = {row.name: [] for row in table.rows}
        with ThreadPoolExecutor(self.jobs) as pool:
            for name, accuracy in pool.map(train, runs):
                found[name].append(accuracy)
        return found

    def _folder(self, row: Row, seed: int) -> Path:
        return self.folder / row.config / f"seed{seed}"

    def _write_config(self, cfg: DictConfig, folder: Path, seed: int) -> None:
        cfg = deepcopy(cfg)
        cfg.train.update(output_dir=str(folder), seed=seed)
        file = folder.with_suffix(".yaml")
        with naming_unwritable(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                LazyConfig.save(cfg, str(file))
                return
            wanted = file.with_suffix(".wanted.yaml")
            LazyConfig.save(cfg, str(wanted))
            same = wanted.read_bytes() == file.read_bytes()
            wanted.unlink()
        if not same:
            raise UserError(
                f"{folder} is a training with other settings, see {file}: give another --output, "
                f"or remove the folder"
            )


class Difference(NamedTuple):
    """A row's accuracy less the default row's, seed by seed.

    Attributes:
        mean: over the seeds.
        half_width: of the 95 % interval of the mean by Student's t; infinite with a single seed.
    """

    mean: float
    half_width: float

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the interval does not hold 0."""
        return abs(self.mean) > self.half_width


def differences(accuracies: Mapping[str, Sequence[float]], default: str) -> dict[str, Difference]:
    """Compares the accuracies of all other rows, of the same seeds, with the default row's."""
    found = {}
    for name, values in accuracies.items():
        if name != default:
            each, count = np.subtract(values, accuracies[default]), len(values)
            half_width = np.inf
            if count > 1:
                half_width = student.ppf(0.975, count - 1) * np.std(each, ddof=1) / count**0.5
            found[name] = Difference(float(np.mean(each)), float(half_width))
    return found


def _as_small_as(size: DictConfig, vit: DictConfig) -> None:
    """Gives a plain ViT the size that goes with a small MViT."""
    channels = _WIDER * size.embed_dim
    vit.update(
        embed_dim=channels,
        depth=_DEPTH_OF_VIT,
        num_heads=channels // (size.embed_dim // size.num_heads),
        drop_path_rate=size.drop_path_rate,
        img_size=size.img_size,
        pretrain_img_size=size.img_size,
    )
    if vit.get("window_size"):
        vit.window_size = size.adaptive_window_size // _STRIDE_OF_VIT


def _is(node: DictConfig, target: type) -> bool:
    return node.get("_target_") in (target, f"{target.__module__}.{target.__qualname__}")


def _train(folder: Path) -> None:
    command = [sys.executable, "-m", "mvitv2_det", "train", "--resume"]
    command += ["--config-file", str(folder.with_suffix(".yaml"))]
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if run.returncode:
        lines = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
        raise UserError(f"{folder}: training has failed: {lines[-1].removeprefix('error: ')}")


def _last_metric(folder: Path) -> float:
    lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    return next(float(line[METRIC]) for line in map(json.loads, reversed(lines)) if METRIC in line)
