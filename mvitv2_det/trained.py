"""A config's model with trained weights, on the CPU."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from .config import apply_overrides, get_config, load_config
from .engine import build_model
from .errors import UserError
from .weights import load_weights
from .weights.report import shortened


def read_config(config: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A config with its overrides.

    Args:
        config: a file, such as the ``config.yaml`` that a run has saved, or a name that
            :func:`mvitv2_det.get_config` knows.
        overrides: ``key=value``.

    Raises:
        UserError: there is no such config, it has no model, or an override does not fit.
    """
    is_file = Path(config).suffix in (".py", ".yaml", ".yml")
    cfg = apply_overrides(load_config(config) if is_file else get_config(config), list(overrides))
    if "model" not in cfg:
        raise UserError(f"config {config} has no 'model': expected a LazyConfig like those here")
    return cfg


def read_trained(cfg: DictConfig, weights: str, *, part: str = "") -> nn.Module:
    """Builds a config's model, in evaluation mode, and loads weights into it.

    Args:
        weights: see :func:`mvitv2_det.load_weights`.
        part: beginning of the names of the parameters that must be among the weights, such as
            ``backbone.``; the others may stay at random.

    Raises:
        UserError: the weights cannot be read, or are not those of the model.
    """
    cfg.train = {**cfg.get("train", {}), "device": "cpu"}
    model = build_model(cfg).eval()
    report = load_weights(model, weights)
    missing = [
        name
        for name in report.initialised
        if name.startswith(part) and not name.endswith("num_batches_tracked")
    ]
    if missing:
        raise UserError(
            f"weights {report.source} lack {len(missing)} tensors of the config's model, or have "
            f"them in other shapes ({', '.join(shortened(missing)[:3])}): use weights of this "
            f"model, with the config.yaml that their training has saved"
        )
    return model
