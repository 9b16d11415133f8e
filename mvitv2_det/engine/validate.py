"""Checks of a run's settings, before anything is built of them: each mistake in one line."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError
from ..evaluation import check_fast_evaluation
from ..randomness import LARGEST_SEED
from ..runtimes import TORCH, check_runtime
from .loggers import LOGGERS, check_loggers

AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}

# Settings that a config need not have, such as those for Detectron2's own script.
DEFAULTS: Mapping[str, Any] = {
    "train.seed": -1,
    "train.amp.dtype": "float16",
    "train.best_metric": None,
    "train.patience": None,
    "train.epochs": None,
    "train.eval_epochs": None,
    "train.reference_batch": None,
    "train.clip_norm": None,
    "train.accumulate": 1,
    "train.fsdp": False,
    "train.compile": False,
    "train.cuda_graphs": False,
    "train.cuda_graphs_in_training": False,
    "train.dry_run": False,
    "train.loggers": (),
    "train.model_ema.enabled": False,
    "train.model_ema.decay": 0.9999,
    "train.model_ema.warmup": False,
    "train.max_non_finite_steps": 0,
    "train.max_unreadable": 0,
    "train.peer_timeout": 1800.0,
    "train.strict": False,
    "train.runtime": TORCH,
    "train.runtime_precision": "fp32",
    "train.report": True,
}


@dataclass(frozen=True)
class _Kind:
    """What a setting must be.

    Attributes:
        words: the same for people.
        fits: whether a value is so.
        may_be_null: whether null is allowed.
    """

    words: str
    fits: Callable[[Any], bool]
    may_be_null: bool = False


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return (_is_integer(value) or isinstance(value, float)) and math.isfinite(value)  # type: ignore[arg-type]


def _integer(least: int, *, null: bool = False) -> _Kind:
    words = f"an integer of at least {least}{' or null' if null else ''}"
    return _Kind(words, lambda value: _is_integer(value) and least <= value < 2**62, null)


_BOOLEAN = _Kind("true or false", lambda value: isinstance(value, bool))
_TEXT = _Kind("a text that is not empty", lambda value: isinstance(value, str) and value != "")
_NOT_NEGATIVE = _Kind("a number of at least 0", lambda value: _is_number(value) and value >= 0)
_POSITIVE = _Kind("a number above 0", lambda value: _is_number(value) and value > 0)
_POSITIVE_OR_NULL = _Kind("a number above 0 or null", _POSITIVE.fits, may_be_null=True)
_SHARE = _Kind("a number in [0, 1)", lambda value: _is_number(value) and 0 <= value < 1)
_DECAY = _Kind("a number above 0, at most 1", lambda value: _is_number(value) and 0 < value <= 1)
_BETAS = _Kind(
    "two numbers in [0, 1)",
    lambda value: (
        isinstance(value, list) and len(value) == 2 and all(_SHARE.fits(beta) for beta in value)
    ),
)

_EVALUATION = {
    "train.device": _TEXT,
    "train.output_dir": _TEXT,
    "train.init_checkpoint": _Kind("a text", lambda value: isinstance(value, str), True),
    "train.strict": _BOOLEAN,
    "train.report": _BOOLEAN,
    "train.amp.dtype": _Kind(" or ".join(AMP_DTYPES), lambda value: value in AMP_DTYPES),
    "train.peer_timeout": _POSITIVE,
    "train.runtime": _TEXT,
    "train.runtime_precision": _TEXT,
    "train.compile": _BOOLEAN,
    "train.cuda_graphs": _BOOLEAN,
    "train.seed": _Kind(
        f"an integer from -1, which draws one, to {LARGEST_SEED}",
        lambda value: _is_integer(value) and -1 <= value <= LARGEST_SEED,
    ),
    "dataloader.test.batch_size": _integer(1),
    "dataloader.test.num_workers": _integer(0),
    "dataloader.evaluator.use_fast_impl": _BOOLEAN,
    "model.num_classes": _integer(1),
    "model.roi_heads.num_classes": _integer(1),
}
_TRAINING = {
    "train.max_iter": _integer(1),
    "train.epochs": _POSITIVE_OR_NULL,
    "train.eval_epochs": _POSITIVE_OR_NULL,
    "train.reference_batch": _integer(1, null=True),
    "train.clip_norm": _POSITIVE_OR_NULL,
    "train.eval_period": _integer(0),
    "train.log_period": _integer(1),
    "train.dry_run": _BOOLEAN,
    "train.loggers": _Kind(
        f"a list of {' and '.join(LOGGERS)}, or empty",
        lambda value: isinstance(value, list | tuple) and set(map(str, value)) <= set(LOGGERS),
    ),
    "train.checkpointer.period": _integer(1),
    "train.checkpointer.max_to_keep": _integer(1, null=True),
    "train.best_metric": _Kind("a text or null", lambda value: isinstance(value, str), True),
    "train.patience": _integer(1, null=True),
    "train.accumulate": _integer(1),
    "train.cuda_graphs_in_training": _BOOLEAN,
    "train.fsdp": _BOOLEAN,
    "train.model_ema.enabled": _BOOLEAN,
    "train.model_ema.decay": _SHARE,
    "train.model_ema.warmup": _BOOLEAN,
    "train.max_non_finite_steps": _integer(0),
    "train.max_unreadable": _integer(0),
    "train.amp.enabled": _BOOLEAN,
    "dataloader.train.total_batch_size": _integer(1),
    "dataloader.train.num_workers": _integer(0),
    "optimizer.lr": _NOT_NEGATIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.momentum": _SHARE,
    "optimizer.eps": _POSITIVE,
    "optimizer.betas": _BETAS,
    "optimizer.params.layer_decay": _DECAY,
    "optimizer.params.lr_factor_func.rate": _DECAY,
}
# A config without one of these is not a config of a run.
_NEEDED_TO_EVALUATE = ("model", "train.device", "train.output_dir", "dataloader.test")
_NEEDED_TO_TRAIN = ("dataloader.train", "optimizer", "lr_multiplier", "train.checkpointer")


def setting(cfg: DictConfig, key: str) -> Any:
    """Reads a setting, or what counts if the config does not have it."""
    found = OmegaConf.select(cfg, key, default=None)
    return DEFAULTS.get(key) if found is None else found


def check_settings(cfg: DictConfig, *, training: bool, complete: bool = True) -> None:
    """Checks the types and ranges of all that the engine reads.

    Args:
        cfg: the config.
        training: whether the run trains.
        complete: whether nothing is null any more that the data are to decide.

    Raises:
        UserError: a setting is wrong or missing.
    """
    needed = _NEEDED_TO_EVALUATE + (_NEEDED_TO_TRAIN if training else ())
    for key in needed:
        if _select(cfg, key) is None:
            raise UserError(f"the config has no {key!r}: expected a LazyConfig like those here")
    for key, kind in (_EVALUATION | (_TRAINING if training else {})).items():
        value = _select(cfg, key)
        if value is None and (key in DEFAULTS or kind.may_be_null or not _has(cfg, key)):
            continue
        if value is None and not complete:
            continue
        if not kind.fits(value):
            raise UserError(f"{key} must be {kind.words}, got {value!r}")
    check_device(cfg)
    if _select(cfg, "dataloader.evaluator.use_fast_impl"):
        check_fast_evaluation()
    if training and setting(cfg, "train.fsdp"):
        _check_sharding(cfg)
    if training:
        check_loggers(setting(cfg, "train.loggers"))
        _check_graphs(cfg)
    else:
        _check_runtime(cfg)
    if training and setting(cfg, "train.patience") and not setting(cfg, "train.best_metric"):
        raise UserError("train.patience needs train.best_metric, such as bbox/AP")


def _check_sharding(cfg: DictConfig) -> None:
    """Refuses what FSDP2 was not tried with here."""
    if cfg.train.amp.enabled and setting(cfg, "train.amp.dtype") == "float16":
        raise UserError(
            "train.fsdp needs train.amp.dtype=bfloat16 or train.amp.enabled=false: the scaler of "
            "float16 does not know the parts of the others"
        )
    for key in ("train.model_ema.enabled", "train.compile", "train.cuda_graphs_in_training"):
        if setting(cfg, key):
            raise UserError(f"train.fsdp and {key} do not go together: take one")


def _check_graphs(cfg: DictConfig) -> None:
    """Checks that training can be replayed as CUDA graphs, if it is to be.

    Raises:
        UserError: it cannot.
    """
    key = "train.cuda_graphs_in_training"
    if not setting(cfg, key):
        return
    if torch.device(cfg.train.device).type == "cpu":
        raise UserError(
            f"{key} is for GPUs, and train.device is {cfg.train.device}: set it to false"
        )
    if setting(cfg, "train.compile"):
        raise UserError(f"train.compile and {key} do not go together: take one")


def _check_runtime(cfg: DictConfig) -> None:
    """Checks what is to compute in evaluation.

    Raises:
        UserError: there is no such runtime, or it cannot evaluate this config.
    """
    runtime, precision = (setting(cfg, f"train.{key}") for key in ("runtime", "runtime_precision"))
    check_runtime(runtime, precision, cfg.train.device)
    if runtime == TORCH and precision != "fp32":
        raise UserError(f"train.runtime_precision is of other runtimes than torch, got {precision}")
    for key in ("multi_scale_test", "task", "train.cuda_graphs"):
        if runtime != TORCH and _select(cfg, key):
            raise UserError(f"train.runtime={runtime} cannot evaluate with {key}: choose torch")


def check_device(cfg: DictConfig) -> None:
    """Checks that the device is one that runs are made for, and that it is there.

    Raises:
        UserError: it is not.
    """
    text = cfg.train.device
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise UserError(f"train.device must be cpu or cuda, got {text!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"train.device must be cpu or cuda, got {text!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"train.device is {text}, but this machine has no GPU that torch can use; add "
            f"train.device=cpu to run without"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"train.device is {text}, but there are {torch.cuda.device_count()} GPUs")


def check_processes(
    cfg: DictConfig, *, num_gpus: int, num_machines: int, machine_rank: int, training: bool
) -> None:
    """Checks the numbers of processes that a run is to have.

    Raises:
        UserError: one is out of range, or the batch cannot be divided among them.
    """
    for option, value in (("--num-gpus", num_gpus), ("--num-machines", num_machines)):
        if value < 1:
            raise UserError(f"{option} must be at least 1, got {value}")
    if not 0 <= machine_rank < num_machines:
        raise UserError(
            f"--machine-rank must be from 0 to {num_machines - 1}, one less than --num-machines, "
            f"got {machine_rank}"
        )
    if torch.cuda.is_available() and num_gpus > torch.cuda.device_count():
        raise UserError(f"--num-gpus is {num_gpus}, but there are {torch.cuda.device_count()} GPUs")
    processes = num_gpus * num_machines
    if training and (batch := _select(cfg, "dataloader.train.total_batch_size")) % processes:
        raise UserError(
            f"dataloader.train.total_batch_size must be a multiple of the {processes} processes, "
            f"got {batch}"
        )


def _select(cfg: DictConfig, key: str) -> Any:
    try:
        found = OmegaConf.select(cfg, key, default=None)
    except OmegaConfBaseException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{key} cannot be read from the config: {reason}") from error
    if isinstance(found, ListConfig):
        return list(found)
    return found


def _has(cfg: DictConfig, key: str) -> bool:
    parent_key, _, leaf = key.rpartition(".")
    parent = _select(cfg, parent_key)
    return isinstance(parent, DictConfig) and leaf in parent
