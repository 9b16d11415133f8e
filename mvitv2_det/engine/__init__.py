"""Training and evaluating the model of a LazyConfig, with Detectron2's engine."""

from .building import build_model
from .evaluating import evaluate, evaluate_checkpoint
from .layer_decay import LayerDecay
from .runner import check_run, train
from .schedule import epoch_length, scaled_rate, warmup_fraction

__all__ = [
    "LayerDecay",
    "build_model",
    "check_run",
    "epoch_length",
    "evaluate",
    "evaluate_checkpoint",
    "scaled_rate",
    "train",
    "warmup_fraction",
]
