"""A config's model with trained weights."""

from collections.abc import Collection, Sequence
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from .config import apply_overrides, get_config, load_config
from .engine import build_model
from .errors import UserError
from .weights import load_weights


def read_config(
    config: str, overrides: Sequence[str] = (), trust: Collection[str] = ()
) -> DictConfig:
    """Reads a config and applies overrides to it.

    Args:
        config: a file, such as the ``config.yaml`` that a run has saved, or a name that
            :func:`mvitv2_det.get_config` knows.
        overrides: ``key=value``.
        trust: what a YAML file may call beside what :mod:`mvitv2_det.allowed_names` knows.

    Raises:
        UserError: there is no such config, it has no model, or an override does not fit.
    """
    is_file = Path(config).suffix in (".py", ".yaml", ".yml")
    cfg = load_config(config, trust) if is_file else get_config(config)
    apply_overrides(cfg, list(overrides))
    if "model" not in cfg:
        raise UserError(f"config {config} has no 'model': expected a LazyConfig like those here")
    return cfg


def read_trained(
    cfg: DictConfig, weights: str, *, part: str = "", device: str = "cpu"
) -> nn.Module:
    """Builds a config's model, in evaluation mode, and loads trained weights into it.

    Every tensor must come from the weights; see :meth:`.LoadReport.check_complete`.

    Args:
        cfg: its ``train.device`` is set to ``device``.
        weights: see :func:`mvitv2_det.load_weights`.
        part: of the model, such as ``backbone.``; by default all of it.
        device: where the model is put.

    Raises:
        UserError: the weights cannot be read, or are not those of the model.
    """
    cfg.train = {**cfg.get("train", {}), "device": device}
    model = build_model(cfg).eval()
    load_weights(model, weights).check_complete(part)
    return model
