"""The training and evaluation loop for LazyConfigs, made of Detectron2's trainer and hooks.

A config for another task than detection may have, beside what all have:

- ``task``: a module around the model, its argument ``network``: it gives losses in training and
  takes the test loader's batches otherwise;
- ``train.load``: keywords of :func:`mvitv2_det.load_weights`;
- ``train.best_metric``: model_best.pth is the checkpoint with the highest, such as ``bbox/AP``;
- ``train.checkpoint_parts``: further entries of each checkpoint, what Checkpointer takes;
- ``train.hooks``: further hooks, after all others;
- ``train.cuda_graphs``: whether evaluation replays the backbone, or the whole network of another
  task, as CUDA graphs; see :func:`mvitv2_det.replay_graphs`.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.engine import (
    AMPTrainer,
    HookBase,
    SimpleTrainer,
    create_ddp_model,
    default_writers,
    hooks,
)
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ..errors import UserError
from ..fused import replay_graphs
from ..weights import load_weights

logger = logging.getLogger(__name__)

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def check_run(cfg: DictConfig, *, training: bool) -> None:
    """Refuses a run that cannot start on this machine.

    Raises:
        UserError: the device, the precision or the checkpoint does not exist.
    """
    if str(cfg.train.device).startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"train.device is {cfg.train.device}, but this machine has no GPU that torch can "
            f"use; add train.device=cpu to run without"
        )
    dtype = _amp_dtype(cfg)
    if dtype not in AMP_DTYPES:
        raise UserError(f"train.amp.dtype must be {' or '.join(AMP_DTYPES)}, got {dtype!r}")
    checkpoint = cfg.train.init_checkpoint
    if checkpoint and "://" not in checkpoint and not os.path.isfile(checkpoint):
        raise UserError(f"train.init_checkpoint: there is no file {checkpoint!r}")
    if not checkpoint and not training:
        raise UserError("train.init_checkpoint is empty: evaluation needs trained weights")


def build_model(cfg: DictConfig) -> nn.Module:
    """Builds the config's model on its device.

    Raises:
        UserError: the model's numbers do not fit each other.
    """
    try:
        model = instantiate(cfg.model)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"the config's model cannot be built: {error}") from error
    return model.to(cfg.train.device)


def load_checkpoint(cfg: DictConfig, model: nn.Module) -> None:
    """Loads ``train.init_checkpoint``, if there is one, into a model.

    Raises:
        UserError: as :func:`mvitv2_det.load_weights` does, strictly where ``train.strict`` is set.
    """
    if cfg.train.init_checkpoint:
        load_weights(
            model,
            cfg.train.init_checkpoint,
            strict=cfg.train.get("strict", False),
            **cfg.train.get("load", {}),
        )


def evaluate(cfg: DictConfig, model: nn.Module) -> Mapping[str, Mapping[str, float]]:
    """Computes what the config's evaluator does of a model on the test split: COCO's results.

    Returns:
        ``{"bbox": {"AP": …, "AP50": …, …}, "segm": {…}}`` in percent; empty on all processes but
        the main one.
    """
    results = inference_on_dataset(
        model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    )
    if comm.is_main_process():
        print_csv_format(results)
    return results


def evaluate_checkpoint(cfg: DictConfig) -> Mapping[str, Mapping[str, float]]:
    """Evaluates the weights in ``train.init_checkpoint``; see :func:`evaluate`.

    If the config has a ``multi_scale_test``, that is evaluated, with the model inside.
    """
    model = build_model(cfg)
    load_checkpoint(cfg, model)
    if cfg.train.get("cuda_graphs", False):
        replay_graphs(getattr(model, "backbone", model))
    if cfg.get("multi_scale_test"):
        cfg.multi_scale_test.model = model
        model = instantiate(cfg.multi_scale_test)
    return evaluate(cfg, _with_task(cfg, create_ddp_model(model, **_ddp_options(cfg))))


def train(cfg: DictConfig, *, resume: bool = False) -> nn.Module:
    """Trains the config's model, evaluating and saving as it goes.

    Args:
        cfg: with ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``.
        resume: go on from the last checkpoint in ``train.output_dir``, if there is one.

    Returns:
        the trained model.

    Raises:
        UserError: the data or the weights cannot be read, or the loss is no longer finite.
    """
    model = build_model(cfg)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    model = create_ddp_model(model, **_ddp_options(cfg))
    trainer = _build_trainer(cfg, _with_task(cfg, model), optimizer)
    parts = {k: instantiate(v) for k, v in cfg.train.get("checkpoint_parts", {}).items()}
    checkpointer = DetectionCheckpointer(model, cfg.train.output_dir, trainer=trainer, **parts)
    trainer.register_hooks(_hooks(cfg, trainer.model, checkpointer))
    resumed = resume and checkpointer.has_checkpoint()
    if resumed:
        checkpointer.resume_or_load("", resume=True)
    else:
        load_checkpoint(cfg, model)
    # The checkpoint holds the iteration that it was saved after.
    start = trainer.iter + 1 if resumed else 0
    with _no_stack_trace_of_user_errors():
        try:
            trainer.train(start, cfg.train.max_iter)
        except FloatingPointError as error:
            raise UserError(
                f"training diverged: {' '.join(str(error).split())}; lower optimizer.lr"
            ) from error
    return model


def _with_task(cfg: DictConfig, model: nn.Module) -> nn.Module:
    """Puts the config's task around a model; checkpoints are of the model alone."""
    if not cfg.get("task"):
        return model
    cfg.task.network = model
    return instantiate(cfg.task)


def _amp_dtype(cfg: DictConfig) -> str:
    """Reads the precision; configs for Detectron2's own script, always float16, do not name it."""
    return cfg.train.amp.get("dtype", "float16")


def _ddp_options(cfg: DictConfig) -> dict[str, Any]:
    options = dict(cfg.train.ddp)
    if str(cfg.train.device) == "cpu":
        # Detectron2 names a GPU per process, and Gloo has no half-precision sum.
        options.update(device_ids=None, fp16_compression=False)
    return options


def _build_trainer(
    cfg: DictConfig, model: nn.Module, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    loader = instantiate(cfg.dataloader.train)
    if not cfg.train.amp.enabled:
        return SimpleTrainer(model, loader, optimizer)
    if str(cfg.train.device) == "cpu":
        logger.info("Training in float32: mixed precision is for GPUs.")
        return SimpleTrainer(model, loader, optimizer)
    return AMPTrainer(model, loader, optimizer, precision=AMP_DTYPES[_amp_dtype(cfg)])


def _hooks(
    cfg: DictConfig, model: nn.Module, checkpointer: DetectionCheckpointer
) -> list[HookBase | None]:
    schedule = instantiate(cfg.lr_multiplier)
    max_iter, writes = cfg.train.max_iter, comm.is_main_process()
    logger.info("Learning rate over %d iterations: %s", max_iter, _describe(schedule, max_iter))
    return [
        hooks.IterationTimer(),
        hooks.LRScheduler(scheduler=schedule),
        hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if writes else None,
        hooks.EvalHook(cfg.train.eval_period, lambda: evaluate(cfg, model)),
        hooks.BestCheckpointer(cfg.train.eval_period, checkpointer, cfg.train.best_metric)
        if writes and cfg.train.get("best_metric")
        else None,
        hooks.PeriodicWriter(
            default_writers(cfg.train.output_dir, max_iter), period=cfg.train.log_period
        )
        if writes
        else None,
        *(instantiate(hook) for hook in cfg.train.get("hooks", [])),
    ]


def _describe(schedule: Callable[[float], float], max_iter: int) -> str:
    """Describes the learning rate's factor at each tenth of a run."""
    return ", ".join(
        f"{tenth * max_iter // 10}: ×{schedule(tenth / 10):.3g}" for tenth in range(10)
    )


@contextmanager
def _no_stack_trace_of_user_errors() -> Iterator[None]:
    """Keeps Detectron2's loop from logging the stack traces of users' mistakes."""

    def keep(record: logging.LogRecord) -> bool:
        return not (
            record.exc_info and isinstance(record.exc_info[1], (UserError, FloatingPointError))
        )

    loop_logger = logging.getLogger("detectron2.engine.train_loop")
    loop_logger.addFilter(keep)
    try:
        yield
    finally:
        loop_logger.removeFilter(keep)
