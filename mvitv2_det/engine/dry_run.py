"""A dry run: all is built, two steps and a short evaluation are made, and nothing is left behind.

It says what the whole run will need: memory, time, and room on the disk.
"""

import copy
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from omegaconf import DictConfig

from ..errors import UserError
from ..whole_files import UNFINISHED
from .averages import AVERAGE
from .peers import PeerWatch
from .runner import train
from .signals import Preempted
from .validate import setting

logger = logging.getLogger(__name__)

STEPS = 2
BATCHES = 4  # of each process, in the evaluation
_GIB = 2**30
# The next run in the folder would remove it, should this one be killed.
_FOLDER = f"{UNFINISHED}dry-run"


def shortened(cfg: DictConfig) -> DictConfig:
    """A copy of a config for the two steps, in a folder of its own inside of the run's."""
    short = copy.deepcopy(cfg)
    short.train.output_dir = str(Path(cfg.train.output_dir) / _FOLDER)
    short.train.max_iter = STEPS
    short.train.log_period = 1
    # The last iteration is evaluated and saved in any case.
    short.train.eval_period = 0
    short.train.checkpointer.period = 2**31
    for key in ("best_metric", "patience"):
        if key in short.train:
            short.train[key] = None
    short.train.loggers = []
    return short


class StepTimes(HookBase):
    """Takes the time of steps.

    Attributes:
        seconds: of each step.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def before_step(self) -> None:
        """A step begins."""
        self._start = _now()

    def after_step(self) -> None:
        """A step has ended."""
        self.seconds.append(_now() - self._start)


class FirstBatches:
    """The first batches of a test loader, which takes the time that they need.

    Attributes:
        seconds: from one batch to the next, without the first if there are more.
        images: of a batch.
        whole: batches of the whole evaluation.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.seconds, self.images, self.whole = 0.0, 1, len(loader)

    def __len__(self) -> int:
        return min(self.whole, BATCHES)

    def __iter__(self) -> Iterator[Any]:
        times = [_now()]
        # No further batch is asked for, which some loaders would be long in making.
        for _, batch in zip(range(len(self)), self.loader, strict=False):
            self.images = len(batch) if isinstance(batch[0], dict) else len(batch[0])
            yield batch
            times.append(_now())
        if len(times) > 1:
            # The first takes longer, as workers start and kernels are chosen.
            first = min(1, len(times) - 2)
            self.seconds = (times[-1] - times[first]) / (len(times) - 1 - first)


class NoResults(DatasetEvaluator):
    """An evaluator that takes some images, where others would insist on all."""

    def __init__(self, evaluator: DatasetEvaluator) -> None:
        self.reset, self.process = evaluator.reset, evaluator.process

    def evaluate(self) -> None:
        """Some images have no results."""


@dataclass(frozen=True)
class Needs:
    """What a run needs, as its dry run has found.

    Attributes:
        memory: bytes at most, of the process that needs most, and ``memory_there`` of the device.
        step: seconds.
        image: seconds of the evaluation, in each process.
        steps, evaluations: of the whole run.
        seconds: of the whole run.
        disk: bytes of all checkpoints that are there at once, ``checkpoint`` bytes each, and
            ``disk_free`` in the run's folder.
    """

    memory: int
    memory_there: int
    step: float
    image: float
    steps: int
    evaluations: int
    seconds: float
    checkpoint: int
    disk: int
    disk_free: int

    def lines(self) -> list[str]:
        """The same for people."""
        minutes = math.ceil(self.seconds / 60)
        return [
            f"memory: {_gib(self.memory)} at most, of {_gib(self.memory_there)}",
            f"step: {self.step:.3g} s",
            f"evaluation: {self.image:.3g} s an image",
            f"checkpoints: {_gib(self.checkpoint)} each, {_gib(self.disk)} in all, of "
            f"{_gib(self.disk_free)} free",
            f"whole run: {self.steps:,} steps and {self.evaluations} evaluations, "
            f"{minutes // 60}:{minutes % 60:02} h",
        ]


def dry_run(cfg: DictConfig, short: DictConfig, peers: PeerWatch | None = None) -> Needs:
    """Makes the two steps and the evaluation, and says what the whole run needs.

    Args:
        cfg: the config of the run.
        short: what :func:`shortened` has made of it.
        peers: what other processes see of this one.

    Raises:
        UserError: the run could not be made: it says what to lower if there is too little memory,
            or what else is wrong; or the disk has too little room for the checkpoints.
    """
    folder, steps = Path(short.train.output_dir), StepTimes()
    try:
        images = FirstBatches(instantiate(short.dataloader.test))
        evaluator = NoResults(instantiate(short.dataloader.evaluator))
        short.dataloader.update(test=images, evaluator=evaluator)
        train(short, peers=peers, timer=steps)
        needs = _needs(cfg, folder, steps, images)
    except Preempted as error:
        raise UserError(f"the dry run was {error.line.partition(':')[0]}") from error
    finally:
        if comm.is_main_process():
            shutil.rmtree(folder, ignore_errors=True)
    logger.info("Dry run:\n  %s", "\n  ".join(needs.lines()))
    if needs.disk > needs.disk_free:
        raise UserError(
            f"the checkpoints need {_gib(needs.disk)}, and train.output_dir "
            f"{cfg.train.output_dir} has {_gib(needs.disk_free)} free: lower "
            f"train.checkpointer.max_to_keep, or name another folder"
        )
    return needs


def _needs(cfg: DictConfig, folder: Path, steps: StepTimes, images: FirstBatches) -> Needs:
    # Of the process that takes longest or most.
    memory = max(comm.all_gather(_peak_memory(cfg.train.device)))
    step = max(comm.all_gather(steps.seconds[-1]))
    batch = max(comm.all_gather(images.seconds))
    max_iter, period = cfg.train.max_iter, cfg.train.eval_period
    evaluations = math.ceil(max_iter / period) if period else 1
    # Averaged weights are evaluated beside the others.
    each = 2 if setting(cfg, "train.model_ema.enabled") else 1
    # The first process writes; it removes the folder after all have got here.
    sizes = comm.all_gather({file.stem: file.stat().st_size for file in folder.glob("*.pth")})[0]
    checkpoint = sizes["model_final"]
    saved, kept = max_iter // cfg.train.checkpointer.period, cfg.train.checkpointer.max_to_keep
    # The last, the best, and the one that is written before another is removed.
    at_once = min(saved, kept or saved) + 1 + bool(setting(cfg, "train.best_metric")) + 1
    return Needs(
        memory=memory,
        memory_there=_memory_there(cfg.train.device),
        step=step,
        image=batch / images.images,
        steps=max_iter,
        evaluations=evaluations,
        seconds=max_iter * step + evaluations * each * images.whole * batch,
        checkpoint=checkpoint,
        disk=at_once * checkpoint + sizes.get(AVERAGE, 0),
        disk_free=shutil.disk_usage(folder.parent).free + sum(sizes.values()),
    )


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_memory(device: str) -> int:
    if torch.device(device).type == "cuda":
        return int(torch.cuda.max_memory_reserved())
    import resource  # Windows has none, and trains without dry runs

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _memory_there(device: str) -> int:
    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _gib(count: float) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 10 else f"{count / 2**20:.1f} MiB"
