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
- ``train.cuda_graphs``: whether evaluation replays the backbone, or the whole network of another
  task, as CUDA graphs; see :func:`mvitv2_det.replay_graphs`;
- ``train.runtime``, ``train.runtime_precision``: what computes the detector in evaluation alone;
  see :mod:`mvitv2_det.runtimes`.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import build_detection_train_loader
from detectron2.engine import create_ddp_model, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ..backbone.trunk import Trunk
from ..data.loader import TrainLoader, build_train_loader
from ..data.lvis import check_lvis_package
from ..errors import UserError, naming_unwritable
from ..fused import compile_blocks
from ..graphs import replay_graphs
from ..randomness import MODEL, derived_seed, draw_seed, seed_all
from ..runtimes import TORCH, run_exported
from ..stop_signals import unheard_by_children
from ..weights import LoadReport, load_weights
from ..weights.files import read_checkpoint
from ..weights.sources import check_source
from .averages import AVERAGE, Averaging, WeightAverage
from .checkpoint import (
    PeriodicCheckpointer,
    RunCheckpointer,
    check_fresh,
    find_newest,
)
from .faults import describe_fault, naming_faults
from .loggers import open_loggers
from .peers import PeerWatch
from .provenance import note_start
from .run_hooks import (
    BestCheckpointer,
    Evaluation,
    Finished,
    LastLineAgain,
    LenientWriter,
    LoggedWindow,
    Preemption,
    SignsOfLife,
    forget_later_metrics,
)
from .sharding import shard, whole_parameters
from .signals import Preempted, SignalWatch, watching_signals
from .trainer import Trainer
from .validate import AMP_DTYPES, check_settings, setting

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


def build_model(cfg: DictConfig) -> nn.Module:
    """Builds the config's model on its device.

    Raises:
        UserError: the model's numbers do not fit each other.
    """
    try:
        model = instantiate(cfg.model)
    # Whatever a constructor raises for numbers and names that it does not know.
    except (AssertionError, ArithmeticError, AttributeError, ImportError, LookupError) as error:
        raise UserError(f"the config's model cannot be built: {_reason(error)}") from error
    except (OmegaConfBaseException, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the config's model cannot be built: {_reason(error)}") from error
    return model.to(cfg.train.device)


def load_checkpoint(cfg: DictConfig, model: nn.Module) -> LoadReport | None:
    """Loads ``train.init_checkpoint``, if there is one, into a model.

    Returns:
        the report on it.

    Raises:
        UserError: as :func:`mvitv2_det.load_weights` does, strictly where ``train.strict`` is set.
    """
    if not cfg.train.init_checkpoint:
        return None
    return load_weights(
        model,
        cfg.train.init_checkpoint,
        strict=cfg.train.get("strict", False),
        **cfg.train.get("load", {}),
    )


def evaluate(
    cfg: DictConfig, model: nn.Module, between_batches: Callable[[], None] | None = None
) -> Mapping[str, Mapping[str, float]]:
    """Computes what the config's evaluator does of a model on the test split: COCO's results.

    Args:
        cfg: the config.
        model: the model.
        between_batches: is called before each.

    Returns:
        ``{"bbox": {"AP": …, "AP50": …, …}, "segm": {…}}`` in percent; empty on all processes but
        the main one.
    """
    loader = instantiate(cfg.dataloader.test)
    if between_batches:
        loader = _Calling(loader, between_batches)
    with whole_parameters(model):
        results = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))
    if comm.is_main_process():
        print_csv_format(results)
    return results


def evaluate_checkpoint(
    cfg: DictConfig, peers: PeerWatch | None = None
) -> Mapping[str, Mapping[str, float]]:
    """Evaluates the weights in ``train.init_checkpoint``; see :func:`evaluate`.

    If the config has a ``multi_scale_test``, that is evaluated, with the model inside.

    Raises:
        UserError: the weights are not those of the whole model.
    """
    advance = peers.advance if peers else None
    model = build_model(cfg)
    if report := load_checkpoint(cfg, model):
        report.check_complete()
    _compile(cfg, model)
    if cfg.train.get("cuda_graphs", False):
        replay_graphs(getattr(model, "backbone", model))
    runtime = setting(cfg, "train.runtime")
    if runtime != TORCH:
        exported = run_exported(
            model,
            cfg.model,
            cfg.train.init_checkpoint,
            runtime=runtime,
            precision=setting(cfg, "train.runtime_precision"),
        )
        return evaluate(cfg, exported, advance)
    if cfg.get("multi_scale_test"):
        cfg.multi_scale_test.model = model
        model = instantiate(cfg.multi_scale_test)
    return evaluate(cfg, _with_task(cfg, create_ddp_model(model, **_ddp_options(cfg))), advance)


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
        newest = _newest(folder) if resume else None
        if not resume:
            check_fresh(folder)
        state = RunState(cfg, newest)
        if comm.is_main_process():
            _prepare_folder(Path(folder), state, resume)
        seed_all(derived_seed(state.seed, MODEL))
        model = build_model(cfg)
        sharded = setting(cfg, "train.fsdp") and comm.get_world_size() > 1
        if sharded:
            if not newest:
                load_checkpoint(cfg, model)
            model = shard(model)
        cfg.optimizer.params.model = model
        plain, average = model, _build_average(cfg, model)
        _compile(cfg, model)
        optimizer = _with_plain_settings(instantiate(cfg.optimizer))
        if not sharded:
            model = create_ddp_model(model, **_ddp_options(cfg))
        loader = _build_loader(cfg)
        trainer = Trainer(
            _with_task(cfg, model),
            loader,
            optimizer,
            seed=state.seed,
            precision=_precision(cfg),
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


class RunState:
    """What a run is determined by, beside its config: the part ``run`` of its checkpoints.

    Attributes:
        seed: that of the config, of the checkpoint, or one that has been drawn.
        start: the iteration to begin with.

    Args:
        cfg: the config.
        checkpoint: that the run goes on from.

    Raises:
        UserError: the checkpoint cannot be read.
    """

    def __init__(self, cfg: DictConfig, checkpoint: Path | None) -> None:
        content = read_checkpoint(checkpoint)[1] if checkpoint else {}
        # The checkpoint holds the iteration that it was saved after.
        self.start = content["trainer"]["iteration"] + 1 if checkpoint else 0
        stored = content.get("run")
        wanted = setting(cfg, "train.seed")
        if isinstance(stored, dict) and isinstance(stored.get("seed"), int):
            self.seed = stored["seed"]
            if wanted not in (-1, self.seed):
                logger.warning("The run goes on with its seed %d, not %d", self.seed, wanted)
        else:
            self.seed = wanted if wanted >= 0 else comm.all_gather(draw_seed())[0]
        self._shape = {
            "processes": comm.get_world_size(),
            "batch": int(cfg.dataloader.train.total_batch_size),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return {"seed": self.seed, **self._shape}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Says so if the run cannot be exactly what it would have been."""
        for key, value in self._shape.items():
            if state_dict[key] != value:
                logger.warning(
                    "The run had %s %d and now has %d: it goes on, but not as it would have",
                    key,
                    state_dict[key],
                    value,
                )


def _prepare_folder(folder: Path, state: RunState, resume: bool) -> None:
    """Notes what the run is made with; its log goes on where the run does.

    Raises:
        UserError: the folder cannot be written to.
    """
    with naming_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if resume:
            forget_later_metrics(folder / "metrics.json", state.start)
        note_start(folder, seed=state.seed, start=state.start, processes=comm.get_world_size())


def _newest(folder: str) -> Path | None:
    """What the first process finds, in all processes.

    Raises:
        UserError: no checkpoint can be read, or a process does not see it.
    """
    found = find_newest(folder) if comm.is_main_process() else None
    newest = comm.all_gather(str(found or ""))[0]
    if newest and not os.path.isfile(newest):
        raise UserError(
            f"process {comm.get_rank()} does not see {newest}: all machines must share "
            f"train.output_dir"
        )
    return Path(newest) if newest else None


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


def _build_loader(cfg: DictConfig) -> Any:
    """Builds the training loader; of Detectron2's arguments, one that can start anywhere."""
    config = cfg.dataloader.train
    target = config.get("_target_")
    if isinstance(target, str):
        target = locate(target)
    try:
        if target is build_detection_train_loader:
            # Of a data set that is no list of records, the sizes of images are not known before.
            records = instantiate(config.dataset)
            is_list = isinstance(records, list)
            config = {
                **config,
                "_target_": build_train_loader if is_list else target,
                "dataset": records,
            }
        loader = instantiate(config)
    except (AssertionError, TypeError) as error:
        raise UserError(f"dataloader.train cannot be built: {_reason(error)}") from error
    if isinstance(loader, TrainLoader):
        loader.max_unreadable = setting(cfg, "train.max_unreadable")
    return loader


class _Calling:
    """A loader that calls a function before each batch."""

    def __init__(self, loader: Any, function: Callable[[], None]) -> None:
        self.loader, self.function = loader, function

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        with unheard_by_children():
            batches = iter(self.loader)
        for batch in batches:
            self.function()
            yield batch


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _with_task(cfg: DictConfig, model: nn.Module) -> nn.Module:
    """Puts the config's task around a model; checkpoints are of the model alone."""
    if not cfg.get("task"):
        return model
    cfg.task.network = model
    return instantiate(cfg.task)


def _compile(cfg: DictConfig, model: nn.Module) -> None:
    """Compiles the blocks, where the config asks for it; names of weights stay as they are."""
    if not setting(cfg, "train.compile"):
        return
    for trunk in model.modules():
        if isinstance(trunk, Trunk) and (trunk.axes != 2 or trunk.cls_token is not None):
            raise UserError(
                "train.compile is for networks of images without a class token: set it to false"
            )
    try:
        compile_blocks(model)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"train.compile: {error}; set it to false") from error


def _build_average(cfg: DictConfig, model: nn.Module) -> WeightAverage | None:
    if not setting(cfg, "train.model_ema.enabled"):
        return None
    return WeightAverage(
        model,
        decay=setting(cfg, "train.model_ema.decay"),
        warmup=setting(cfg, "train.model_ema.warmup"),
    )


def _with_plain_settings(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Replaces the config's lists in an optimizer's settings, such as AdamW's betas, by tuples.

    torch 2.8 saves them as they are, in a checkpoint that it then refuses: fvcore resumes with
    ``weights_only``, which knows none of OmegaConf's classes.
    """
    for settings in (optimizer.defaults, *optimizer.param_groups):
        for name, value in settings.items():
            if isinstance(value, ListConfig):
                settings[name] = tuple(value)
    return optimizer


def _precision(cfg: DictConfig) -> torch.dtype | None:
    """Reads the precision; None is float32, as always on a CPU."""
    if not cfg.train.amp.enabled:
        return None
    if torch.device(cfg.train.device).type == "cpu":
        logger.info("Training in float32: mixed precision is for GPUs.")
        return None
    return AMP_DTYPES[setting(cfg, "train.amp.dtype")]


def _ddp_options(cfg: DictConfig) -> dict[str, Any]:
    options = dict(cfg.train.ddp)
    if str(cfg.train.device) == "cpu":
        # Detectron2 names a GPU per process, and Gloo has no half-precision sum.
        options.update(device_ids=None, fp16_compression=False)
    return options


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
            averaged_model = _with_task(cfg, average.model)
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
