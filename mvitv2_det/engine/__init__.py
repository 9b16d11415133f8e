"""Training and evaluating the model of a LazyConfig, with Detectron2's engine."""

from .layer_decay import LayerDecay
from .runner import build_model, check_run, evaluate, evaluate_checkpoint, train
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
