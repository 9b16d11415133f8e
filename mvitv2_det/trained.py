"""A config's model with trained weights."""

from collections.abc import Collection, Sequence
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from .config import apply_overrides, get_config, load_config
from .engine import build_model
from .errors import UserError
from .weights import LoadReport, load_weights
from .weights.report import shortened


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

    Every tensor must come from the weights: what a random layer predicts looks like a result.

    Args:
        cfg: its ``train.device`` is set to ``device``.
        weights: see :func:`mvitv2_det.load_weights`.
        part: the beginning of the names of the parameters that must be among the weights, such as
            ``backbone.``; the others may stay random. By default the whole model, and then nothing
            may be left over of the weights, either.
        device: where the model is put.

    Raises:
        UserError: the weights cannot be read, or are not those of the model.
    """
    cfg.train = {**cfg.get("train", {}), "device": device}
    model = build_model(cfg).eval()
    _check_complete(load_weights(model, weights), part)
    return model


def _check_complete(report: LoadReport, part: str) -> None:
    for misfit in report.misfits:
        if misfit.name.startswith(part) and misfit.name.endswith("cls_score.weight"):
            raise UserError(
                f"weights {report.source} know {misfit.old[0] - 1} classes, the config's model "
                f"{misfit.new[0] - 1}: use the config.yaml that their training has saved, or set "
                f"model.roi_heads.num_classes"
            )
    missing = [
        name
        for name in report.initialised
        if name.startswith(part) and not name.endswith("num_batches_tracked")
    ]
    # Weights may hold more than a part of the model, but not more than the whole.
    wrong = list(dict.fromkeys((*missing, *(report.unexpected if not part else ()))))
    if wrong:
        raise UserError(
            f"weights {report.source} are not those of the config's model: {len(wrong)} of the "
            f"tensors are in one of them alone or of another shape ("
            f"{', '.join(shortened(wrong)[:3])}, …); use weights of this model after its training, "
            f"with the config.yaml that training has saved"
        )
