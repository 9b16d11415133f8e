"""The optimiser of the recipe, as facebookresearch/mvit has it."""

from collections.abc import Sequence
from typing import Any

from timm.optim import param_groups_layer_decay
from torch import nn


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    no_weight_decay: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Divides parameters into groups of one learning rate and weight decay each.

    Biases and norms have no weight decay. Position tables and the class token have, as in
    facebookresearch/mvit (``ZERO_DECAY_POS_CLS: False``) and unlike in detection.

    Args:
        model: a ``Recognizer``.
        base_lr: learning rate of the last layer.
        weight_decay: of all others.
        layer_decay: factor of the learning rate from layer to layer towards the input.
        no_weight_decay: patterns of further names without, such as ``*rel_pos*``.
    """
    groups = param_groups_layer_decay(
        model,
        weight_decay,
        no_weight_decay_list=tuple(no_weight_decay),
        layer_decay=layer_decay,
    )
    # Schedulers of timm apply lr_scale; that of Detectron2 multiplies each group's own rate.
    return [{**group, "lr": base_lr * group.pop("lr_scale")} for group in groups]
