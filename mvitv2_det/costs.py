"""Counts of multiply-adds and parameters of networks, the cost columns of the paper's tables.

The rules are those of fvcore, as in the paper. One multiply-add is one operation. A layer norm
costs 5 operations per element, a batch norm in evaluation 2, nearest upsampling and adaptive
average pooling 1. Activations, softmax, additions, max pooling, resizing of position tables and
ROIAlign are free. A fused attention, which fvcore does not know, costs its two matrix products.

PyTorch's own counter counts the operations on the meta device. No values are computed and no
memory is needed for weights, so that every size can be counted on any machine.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .errors import UserError

aten = torch.ops.aten
BATCH_NORMS = (
    aten.native_batch_norm,
    aten.cudnn_batch_norm,
    aten._native_batch_norm_legit,
    aten._native_batch_norm_legit_no_training,
)


@dataclass(frozen=True)
class Cost:
    """The cost of one part of a network for one image.

    Attributes:
        name: name of the part.
        macs: multiply-adds without those of batch norm, which Detectron2 does not count.
        batch_norm_macs: multiply-adds of batch norm, as fvcore counts them.
        parameters: number of weights, trained and frozen.
    """

    name: str
    macs: int
    batch_norm_macs: int
    parameters: int

    @property
    def giga(self) -> float:
        """10⁹ multiply-adds, without batch norm."""
        return self.macs / 1e9

    @property
    def giga_with_batch_norm(self) -> float:
        """10⁹ multiply-adds, with batch norm."""
        return (self.macs + self.batch_norm_macs) / 1e9

    @property
    def million_parameters(self) -> float:
        """10⁶ parameters."""
        return self.parameters / 1e6


def count_backbone(
    cfg_or_backbone: DictConfig | nn.Module, image_size: Sequence[int], channels: int = 3
) -> Cost:
    """Counts the cost of a backbone, a recognizer, or any other module that takes images or clips.

    Args:
        cfg_or_backbone: a LazyCall, which takes Detectron2, or a module. A module is not changed.
        image_size: (H, W) of the image in pixels, or (T, H, W) of the clip.
        channels: number of channels of the image.

    Raises:
        UserError: a number is not positive, or there are not two or three.
    """
    if len(image_size) not in (2, 3):
        raise UserError(f"image size must be (H, W), or (T, H, W) of a clip, got {image_size}")
    for size in image_size:
        check_positive("each side of the image size", size)
    backbone = on_meta(cfg_or_backbone)
    return count("backbone", [backbone], lambda: backbone(meta(1, channels, *image_size)))[0]


def on_meta(cfg_or_model: DictConfig | nn.Module) -> nn.Module:
    """Makes a model, or a copy of a given model, on the meta device in evaluation mode.

    Raises:
        UserError: the config has no model.
    """
    if isinstance(cfg_or_model, DictConfig):
        from detectron2.config import instantiate  # Only configs need Detectron2.

        call = cfg_or_model if "_target_" in cfg_or_model else cfg_or_model.get("model")
        if not isinstance(call, DictConfig) or "_target_" not in call:
            raise UserError("the config has no model to count the costs of")
        try:
            with torch.device("meta"):
                return instantiate(call).eval()
        except RuntimeError:
            # Detectron2's Swin reads values while it is built.
            return on_meta(instantiate(call))
    weights = chain(cfg_or_model.parameters(), cfg_or_model.buffers())
    # deepcopy uses the copies that it is given, so that no weights are copied.
    copied = {id(weight): torch.empty_like(weight, device="meta") for weight in weights}
    return copy.deepcopy(cfg_or_model, copied).eval()


def count(name: str, modules: Iterable[nn.Module], run: Callable[[], Any]) -> tuple[Cost, Any]:
    """Counts the operations of ``run`` and the parameters of ``modules``.

    Returns:
        The cost, and the result of ``run``.
    """
    with FlopCounterMode(display=False, custom_mapping=_RULES) as counter, torch.no_grad():
        result = run()
    operations = counter.get_flop_counts().get("Global", {})
    batch_norm = sum(operations.get(kind, 0) for kind in BATCH_NORMS)
    other = sum(operations.values()) - batch_norm
    parameters = sum(weight.numel() for module in modules for weight in module.parameters())
    return Cost(name, other // 2, batch_norm // 2, parameters), result


def meta(*shape: int) -> Tensor:
    """A tensor of a shape, without values."""
    return torch.empty(shape, device="meta")


# The rules of fvcore for operations that PyTorch's counter does not count. That counter takes a
# multiply-add for two operations, hence the factors of two.

Shape = Sequence[int]


def _layer_norm_flops(
    x_shape: Shape, normalized_shape: Shape, weight_shape: Shape | None, *_: Any, **__: Any
) -> int:
    return 2 * prod(x_shape) * (4 if weight_shape is None else 5)


def _batch_norm_flops(x_shape: Shape, weight_shape: Shape | None, *_: Any, **__: Any) -> int:
    """Counts a batch norm in evaluation, which does not compute statistics."""
    return 2 * prod(x_shape) * (1 if weight_shape is None else 2)


def _group_norm_flops(x_shape: Shape, weight_shape: Shape | None, *_: Any, **__: Any) -> int:
    return 2 * prod(x_shape) * (4 if weight_shape is None else 5)


def _input_flops(x_shape: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(x_shape)


def _output_flops(*_: Any, out_shape: Shape, **__: Any) -> int:
    return 2 * prod(out_shape)


_RULES = {
    aten.native_layer_norm: _layer_norm_flops,
    aten.native_group_norm: _group_norm_flops,
    aten.upsample_nearest2d: _output_flops,
    aten._adaptive_avg_pool2d: _input_flops,
    **dict.fromkeys(BATCH_NORMS, _batch_norm_flops),
}
# PyTorch's counter finds the rule by the operation, but some releases of it break up every
# operation whose overload has no rule: with both, none of these is ever broken up.
_RULES |= {
    getattr(operation, overload): rule
    for operation, rule in _RULES.items()
    for overload in operation.overloads()
}


def check_positive(name: str, value: int) -> None:
    """Raises UserError if a number is not positive."""
    if value < 1:
        raise UserError(f"{name} must be at least 1, got {value}")
