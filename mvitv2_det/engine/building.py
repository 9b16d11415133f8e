"""What the nodes of a config make: model, loader, optimizer, precision, and their options."""

import logging
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.data import build_detection_train_loader
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ..backbone.trunk import Trunk
from ..data.loader import TrainLoader, build_train_loader
from ..errors import UserError
from ..graphs import replay_graphs
from ..processor import multiplies_bfloat16
from ..weights import LoadReport, load_weights
from .averages import WeightAverage
from .validate import AMP_DTYPES, setting

logger = logging.getLogger(__name__)


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


def build_loader(cfg: DictConfig) -> Any:
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


def with_task(cfg: DictConfig, model: nn.Module) -> nn.Module:
    """Puts the config's task around a model; checkpoints are of the model alone."""
    if not cfg.get("task"):
        return model
    cfg.task.network = model
    return instantiate(cfg.task)


def compile_model(cfg: DictConfig, model: nn.Module) -> None:
    """Compiles the blocks, where the config asks for it; names of weights stay as they are."""
    if not setting(cfg, "train.compile"):
        return
    from ..fused import compile_blocks  # the plain model trains without it

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


def replay_model(cfg: DictConfig, model: nn.Module, *, training: bool = False) -> None:
    """Has the backbone, or the whole network of another task, replayed where the config asks."""
    key = "train.cuda_graphs_in_training" if training else "train.cuda_graphs"
    if setting(cfg, key):
        replay_graphs(getattr(model, "backbone", model), training=training)


def build_average(cfg: DictConfig, model: nn.Module) -> WeightAverage | None:
    if not setting(cfg, "train.model_ema.enabled"):
        return None
    return WeightAverage(
        model,
        decay=setting(cfg, "train.model_ema.decay"),
        warmup=setting(cfg, "train.model_ema.warmup"),
    )


def with_plain_settings(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Replaces the config's lists in an optimizer's settings, such as AdamW's betas, by tuples.

    torch 2.8 saves them as they are, in a checkpoint that it then refuses: fvcore resumes with
    ``weights_only``, which knows none of OmegaConf's classes.
    """
    for settings in (optimizer.defaults, *optimizer.param_groups):
        for name, value in settings.items():
            if isinstance(value, ListConfig):
                settings[name] = tuple(value)
    return optimizer


def precision_of(cfg: DictConfig) -> torch.dtype | None:
    """Reads the precision; None is float32, as on a CPU that does not multiply the other type."""
    if not cfg.train.amp.enabled:
        return None
    dtype = AMP_DTYPES[setting(cfg, "train.amp.dtype")]
    if torch.device(cfg.train.device).type != "cpu":
        return dtype
    if not multiplies_bfloat16():
        logger.info("Training in float32: mixed precision on this CPU would be slower.")
        return None
    if dtype == torch.bfloat16:
        return dtype
    logger.info("Training in float32: on a CPU mixed precision is train.amp.dtype=bfloat16 alone.")
    return None


def ddp_options(cfg: DictConfig) -> dict[str, Any]:
    options = dict(cfg.train.ddp)
    if str(cfg.train.device) == "cpu":
        # Detectron2 names a GPU per process, and Gloo has no half-precision sum.
        options.update(device_ids=None, fp16_compression=False)
    return options


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
