"""The training and evaluation loop for LazyConfigs, made of Detectron2's trainer and hooks.

A config for another task than detection may have, beside what all have:

- ``task``: a module around the model, its argument ``network``: it gives losses in training and
  takes the test loader's batches otherwise;
- ``train.fsdp``: whether the processes share the model, see :mod:`.sharding`;
- ``train.load``: keywords of :func:`mvitv2_det.load_weights`;
- ``train.best_metric``: model_best.pth is the checkpoint with the highest, such as ``bbox/AP``;
- ``train.patience``: evaluations without a better one after which the run ends;
- ``train.model_ema``: ``enabled``, ``decay`` and ``warmup`` of an average of the weights, which is
  evaluated beside them and saved at the end as model_ema.pth; see :mod:`.averages`;
- ``train.epochs``, ``train.eval_epochs``, ``train.reference_batch``: see
  :func:`.schedule.set_schedule`;
- ``train.compile``: whether blocks run compiled; see :func:`mvitv2_det.fused.compile_blocks`;
- ``train.accumulate``, ``train.clip_norm``, ``train.max_non_finite_steps``: see
  :class:`.trainer.Trainer`;
- ``train.max_unreadable``: so many are replaced by others, in each process and start;
- ``train.peer_timeout``: seconds in which each process must get to its next step;
- ``train.dry_run``: see :mod:`.dry_run`;
- ``train.loggers``: further writers of metrics, names in :data:`.loggers.LOGGERS`;
- ``train.checkpoint_parts``: further entries of each checkpoint, what Checkpointer takes;
- ``train.hooks``: further hooks, after all others;
- ``train.cuda_graphs``, ``train.cuda_graphs_in_training``: whether evaluation alone, and whether
  training, replays the backbone, or the whole network of another task, as CUDA graphs; see
  :func:`mvitv2_det.replay_graphs`;
- ``train.runtime``, ``train.runtime_precision``: what computes the detector in evaluation alone;
  see :mod:`mvitv2_det.runtimes`.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.config import instantiate
from detectron2.engine import create_ddp_model, default_writers, hooks
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..data.loader import TrainLoader
from ..data.lvis import check_lvis_package
from ..errors import UserError
from ..randomness import MODEL, derived_seed, seed_all
from ..weights.sources import check_source
from .averages import AVERAGE, Averaging, WeightAverage
from .building import (
    build_average,
    build_loader,
    build_model,
    compile_model,
    ddp_options,
    load_checkpoint,
    precision_of,
    replay_model,
    with_plain_settings,
    with_task,
)
from .checkpoint import (
    PeriodicCheckpointer,
    RunCheckpointer,
    check_fresh,
)
from .evaluating import evaluate
from .faults import describe_fault, naming_faults
from .loggers import open_loggers
from .peers import PeerWatch
from .run_hooks import (
    BestCheckpointer,
    Evaluation,
    Finished,
    LastLineAgain,
    LenientWriter,
    LoggedWindow,
    Preemption,
    SignsOfLife,
)
from .run_state import RunState, newest_checkpoint, prepare_folder
from .sharding import shard
from .signals import Preempted, SignalWatch, watching_signals
from .trainer import Trainer
from .validate import check_settings, setting

logger = logging.getLogger(__name__)


def check_run(cfg: DictConfig, *, training: bool, complete: bool = True) -> None:
    """Refuses a run that cannot start on this machine.

    Args:
        cfg: the config.
        training: whether the run trains.
        complete: see :func:`.validate.check_settings`.

    Raises:
        UserError: a setting is wrong, or the device or the checkpoint does not exist.
    """
    check_settings(cfg, training=training, complete=complete)
    evaluator = OmegaConf.select(cfg, "dataloader.evaluator._target_")
    if "lvisevaluator" in str(evaluator).lower():  # a name or a class, ours or Detectron2's
        check_lvis_package()
    checkpoint = cfg.train.init_checkpoint
    if checkpoint:
        check_source(checkpoint)
    if not checkpoint and not training:
        raise UserError("train.init_checkpoint is empty: evaluation needs trained weights")


def train(
    cfg: DictConfig,
    *,
    resume: bool = False,
    peers: PeerWatch | None = None,
    timer: hooks.HookBase | None = None,
) -> nn.Module:
    """Trains the config's model, evaluating and saving as it goes.

    A run that is left, in whatever way, and resumed is the run that was never left: on a CPU bit
    for bit.

    Args:
        cfg: with ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier`` and ``train``.
        resume: go on from the newest checkpoint in ``train.output_dir``, if there is one.
        peers: what other processes see of this one.
        timer: a hook that comes before all others, so that steps alone are between its calls.

    Returns:
        the trained model.

    Raises:
        UserError: the data or the weights cannot be read, the loss is no longer finite, or
            ``train.output_dir`` has checkpoints although the run is not to resume.
        Preempted: a signal has ended the run, which can be resumed.
    """
    folder = cfg.train.output_dir
    with watching_signals() as signals:
        newest = newest_checkpoint(folder) if resume else None
        if not resume:
            check_fresh(folder)
        state = RunState(cfg, newest)
        if comm.is_main_process():
            prepare_folder(Path(folder), state, resume)
        seed_all(derived_seed(state.seed, MODEL))
        model = build_model(cfg)
        sharded = setting(cfg, "train.fsdp") and comm.get_world_size() > 1
        if sharded:
            if not newest:
                load_checkpoint(cfg, model)
            model = shard(model)
        cfg.optimizer.params.model = model
        plain, average = model, build_average(cfg, model)
        compile_model(cfg, model)
        replay_model(cfg, model, training=True)
        optimizer = with_plain_settings(instantiate(cfg.optimizer))
        if not sharded:
            model = create_ddp_model(model, **ddp_options(cfg))
        loader = build_loader(cfg)
        trainer = Trainer(
            with_task(cfg, model),
            loader,
            optimizer,
            seed=state.seed,
            precision=precision_of(cfg),
            accumulate=setting(cfg, "train.accumulate"),
            clip_norm=setting(cfg, "train.clip_norm"),
            max_non_finite=setting(cfg, "train.max_non_finite_steps"),
        )
        parts = {k: instantiate(v) for k, v in cfg.train.get("checkpoint_parts", {}).items()}
        averages = {AVERAGE: average} if average else {}
        checkpointer = RunCheckpointer(
            model, folder, trainer=trainer, run=state, **averages, **parts
        )
        checkpoints = PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)
        preemption = Preemption(signals, checkpoints)
        trainer.register_hooks([timer, Averaging(average, plain) if average else None])
        evaluation = _evaluation(cfg, trainer.model, average, preemption, peers)
        trainer.register_hooks(
            _hooks(cfg, evaluation, checkpoints, preemption, peers, resumed=state.start > 0)
        )
        if newest:
            checkpointer.resume(newest)
        elif not sharded:
            load_checkpoint(cfg, model)
            if average:
                average.start(plain)
        if state.start > cfg.train.max_iter:
            raise UserError(
                f"{newest} has {state.start} iterations already, more than train.max_iter, which "
                f"is {cfg.train.max_iter}"
            )
        if isinstance(loader, TrainLoader):
            loader.start_at(state.start, seed=state.seed)
        elif newest:
            logger.warning("The loader of this config cannot go on where it was: it begins anew")
        try:
            _run(trainer, (state.start, cfg.train.max_iter), signals, preemption, peers)
        except Finished as reason:
            logger.info("Training ends after iteration %d: %s", trainer.iter, reason)
            checkpointer.save("model_final", iteration=trainer.iter)
        finally:
            if isinstance(loader, TrainLoader):
                loader.close()
        if average:
            average.save(folder, parts)
    return model


def _run(
    trainer: Trainer,
    iterations: tuple[int, int],
    signals: SignalWatch,
    preemption: Preemption,
    peers: PeerWatch | None,
) -> None:
    """Trains; a signal that kills a loader's workers ends the run as it would without workers."""
    with _no_stack_trace_of_expected_errors(), naming_faults(trainer, peers):
        try:
            trainer.train(*iterations)
        except (Preempted, Finished, UserError):
            raise
        except Exception:
            is_complete = trainer.complete is not None and trainer.complete >= iterations[0]
            if not (signals.number and is_complete and comm.get_world_size() == 1):
                raise
            trainer.iter = trainer.complete
            preemption.save_and_stop()


def _evaluation(
    cfg: DictConfig,
    model: nn.Module,
    average: WeightAverage | None,
    preemption: Preemption,
    peers: PeerWatch | None,
) -> Evaluation:
    """The hook that evaluates the weights and, beside them, their average."""

    def between_batches() -> None:
        preemption.stop_evaluation()
        if peers:
            peers.advance()

    def evaluate_all() -> dict[str, Any]:
        averaged: dict[str, Any] = {}
        if average:
            logger.info("Evaluating the averaged weights, then the others")
            averaged_model = with_task(cfg, average.model)
            averaged = {AVERAGE: evaluate(cfg, averaged_model, between_batches)}
        # Last, as what is drawn of the last predictions belongs to the weights in "model".
        return {**evaluate(cfg, model, between_batches), **averaged}

    return Evaluation(cfg.train.eval_period, evaluate_all)


def _hooks(
    cfg: DictConfig,
    evaluation: Evaluation,
    checkpoints: PeriodicCheckpointer,
    preemption: Preemption,
    peers: PeerWatch | None,
    *,
    resumed: bool,
) -> list[hooks.HookBase | None]:
    schedule = instantiate(cfg.lr_multiplier)
    max_iter, writes = cfg.train.max_iter, comm.is_main_process()
    logger.info("Learning rate over %d iterations: %s", max_iter, _describe(schedule, max_iter))
    best = setting(cfg, "train.best_metric")
    patience = setting(cfg, "train.patience")
    writers = default_writers(cfg.train.output_dir, max_iter) if writes else []
    writers = [LenientWriter(writer) for writer in writers]
    if writes:
        services = open_loggers(setting(cfg, "train.loggers"), cfg, resumed=resumed)
        writers += [LenientWriter(writer, errors=Exception) for writer in services]
    period = cfg.train.log_period
    return [
        hooks.IterationTimer(),
        SignsOfLife(peers) if peers else None,
        LoggedWindow(),
        hooks.LRScheduler(scheduler=schedule),
        # Saved before it is evaluated: what is left meanwhile is evaluated when the run goes on.
        checkpoints,
        preemption,
        evaluation,
        BestCheckpointer(evaluation, checkpoints.checkpointer, best, patience) if best else None,
        *(LastLineAgain(one, period) for one in writers if isinstance(one.writer, JSONWriter)),
        hooks.PeriodicWriter(writers, period=period) if writes else None,
        *(instantiate(hook) for hook in cfg.train.get("hooks", [])),
    ]


def _describe(schedule: Callable[[float], float], max_iter: int) -> str:
    """Describes the learning rate's factor at each tenth of a run."""
    return ", ".join(
        f"{tenth * max_iter // 10}: ×{schedule(tenth / 10):.3g}" for tenth in range(10)
    )


@contextmanager
def _no_stack_trace_of_expected_errors() -> Iterator[None]:
    """Keeps Detectron2's loop from logging the stack traces of what is said in one line."""

    def keep(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return error is None or describe_fault(error) is None

    loop_logger = logging.getLogger("detectron2.engine.train_loop")
    loop_logger.addFilter(keep)
    try:
        yield
    finally:
        loop_logger.removeFilter(keep)
