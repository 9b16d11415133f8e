"""Counts of multiply-adds and parameters of detectors, the cost columns of the paper's Table 5.

The rules are those of fvcore, as in the paper. One multiply-add is one operation. A layer norm
costs 5 operations per element, a batch norm in evaluation 2, nearest upsampling and adaptive
average pooling 1. Activations, softmax, additions, max pooling, resizing of position tables and
ROIAlign are free. A fused attention, which fvcore does not know, costs its two matrix products.

PyTorch's own counter counts the operations on the meta device. No values are computed and no
memory is needed for weights, so that every size can be counted on any machine.

The work of a whole detector depends on its predictions (non-maximum suppression), which the meta
device does not have. The parts of a detector are therefore run one by one on inputs of given
sizes.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import ImageList
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .errors import UserError

IMAGE_SIZE = (800, 1280)
PROPOSALS = 1000
DETECTIONS = 100

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


@dataclass(frozen=True)
class Costs:
    """The costs of a detector for one image.

    Attributes:
        parts: costs of the parts in the order in which they run: ``bottom-up`` and ``FPN`` (or
            ``backbone`` if there is no FPN), ``RPN head``, ``box heads`` and, if there is one,
            ``mask head``.
        image_size: (H, W) of the image in pixels, before the detector pads it.
        proposals: number of regions in each stage of the box heads.
        detections: number of regions in the mask head.
    """

    parts: tuple[Cost, ...]
    image_size: tuple[int, int]
    proposals: int
    detections: int

    @property
    def total(self) -> Cost:
        """The sum of the parts."""
        return Cost(
            "total",
            sum(part.macs for part in self.parts),
            sum(part.batch_norm_macs for part in self.parts),
            sum(part.parameters for part in self.parts),
        )

    def part(self, name: str) -> Cost:
        """Returns the cost of the part with a name.

        Raises:
            KeyError: there is no such part.
        """
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(name)


def count_costs(
    cfg_or_model: DictConfig | nn.Module,
    image_size: Sequence[int] = IMAGE_SIZE,
    proposals: int = PROPOSALS,
    detections: int = DETECTIONS,
) -> Costs:
    """Counts the costs of a detector; the defaults reproduce Table 5.

    Args:
        cfg_or_model: a config with a ``model`` key, a LazyCall of a model, or a model. A model is
            not changed.
        image_size: (H, W) of the image in pixels, before the detector pads it.
        proposals: number of regions in each stage of the box heads.
        detections: number of regions in the mask head.

    Raises:
        UserError: a number is not positive; the model is not a ``GeneralizedRCNN`` with an RPN and
            with ``StandardROIHeads`` or ``CascadeROIHeads``; or it has further parts.
    """
    size = _checked_size(image_size)
    _check_positive("proposals", proposals)
    _check_positive("detections", detections)
    model: GeneralizedRCNN = _on_meta(cfg_or_model)
    _check_detector(model)
    parts, features = _count_pyramid(model.backbone, size)
    parts.append(_count_rpn_head(model.proposal_generator, features))
    parts.append(_count_box_heads(model.roi_heads, features, proposals))
    if model.roi_heads.mask_on:
        parts.append(_count_mask_head(model.roi_heads, features, detections))
    costs = Costs(tuple(parts), size, proposals, detections)
    _check_nothing_is_missed(model, costs)
    return costs


def count_backbone(
    cfg_or_backbone: DictConfig | nn.Module, image_size: Sequence[int], channels: int = 3
) -> Cost:
    """Counts the cost of a backbone, or of any other module that takes images.

    Args:
        cfg_or_backbone: a LazyCall or a module. A module is not changed.
        image_size: (H, W) of the image in pixels.
        channels: number of channels of the image.

    Raises:
        UserError: a number is not positive.
    """
    height, width = _checked_size(image_size)
    backbone = _on_meta(cfg_or_backbone)
    return _count("backbone", [backbone], lambda: backbone(_meta(1, channels, height, width)))[0]


def _on_meta(cfg_or_model: DictConfig | nn.Module) -> nn.Module:
    """Makes a model, or a copy of a given model, on the meta device in evaluation mode."""
    if isinstance(cfg_or_model, DictConfig):
        call = cfg_or_model if "_target_" in cfg_or_model else cfg_or_model.get("model")
        if not isinstance(call, DictConfig) or "_target_" not in call:
            raise UserError("the config has no model to count the costs of")
        try:
            with torch.device("meta"):
                return instantiate(call).eval()
        except RuntimeError:
            # Detectron2's Swin reads values while it is built.
            return _on_meta(instantiate(call))
    weights = chain(cfg_or_model.parameters(), cfg_or_model.buffers())
    # deepcopy uses the copies that it is given, so that no weights are copied.
    copied = {id(weight): torch.empty_like(weight, device="meta") for weight in weights}
    return copy.deepcopy(cfg_or_model, copied).eval()


class _Counted(nn.Module):
    """Wrapper of a network within another network, which records the cost of its last run."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.network = network

    def forward(self, images: Tensor) -> Any:
        self.cost, result = _count(self.name, [self.network], lambda: self.network(images))
        return result


def _count_pyramid(
    backbone: nn.Module, image_size: tuple[int, int]
) -> tuple[list[Cost], dict[str, Tensor]]:
    """Counts the backbone, and separately its FPN if it has one; also returns the feature maps."""
    # Padded as in GeneralizedRCNN.preprocess_image.
    images = ImageList.from_tensors(
        [_meta(3, *image_size)],
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    ).tensor
    if isinstance(backbone, FPN):
        backbone.bottom_up = _Counted("bottom-up", backbone.bottom_up)
    whole, features = _count("backbone", [backbone], lambda: backbone(images))
    if not isinstance(backbone, FPN):
        return [whole], features
    bottom_up = backbone.bottom_up.cost
    fpn = Cost(
        "FPN",
        whole.macs - bottom_up.macs,
        whole.batch_norm_macs - bottom_up.batch_norm_macs,
        whole.parameters - bottom_up.parameters,
    )
    return [bottom_up, fpn], features


def _count_rpn_head(rpn: RPN, features: dict[str, Tensor]) -> Cost:
    maps = [features[name] for name in rpn.in_features]
    return _count("RPN head", [rpn.rpn_head], lambda: rpn.rpn_head(maps))[0]


def _count_box_heads(heads: StandardROIHeads, features: dict[str, Tensor], proposals: int) -> Cost:
    """Counts the box heads and their predictors, one of each for every stage of a cascade."""
    if isinstance(heads, CascadeROIHeads):
        stages = list(zip(heads.box_head, heads.box_predictor, strict=True))
    else:
        stages = [(heads.box_head, heads.box_predictor)]
    regions = _regions(features, heads.box_in_features, heads.box_pooler, proposals)

    def run() -> None:
        for head, predictor in stages:
            predictor(head(regions))

    return _count("box heads", chain.from_iterable(stages), run)[0]


def _count_mask_head(heads: StandardROIHeads, features: dict[str, Tensor], detections: int) -> Cost:
    if heads.mask_pooler is None or not hasattr(heads.mask_head, "layers"):
        raise UserError(
            f"the costs of the mask head {type(heads.mask_head).__name__} cannot be counted, only "
            f"those of one with layers() that takes pooled regions"
        )
    regions = _regions(features, heads.mask_in_features, heads.mask_pooler, detections)
    # layers() runs only the network; forward() would also select the mask of a class.
    return _count("mask head", [heads.mask_head], lambda: heads.mask_head.layers(regions))[0]


def _regions(
    features: dict[str, Tensor], names: Sequence[str], pooler: ROIPooler, number: int
) -> Tensor:
    """Makes a tensor of the shape of pooled regions: (number, C, pooled height, pooled width)."""
    return _meta(number, features[names[0]].shape[1], *pooler.output_size)


def _count(name: str, modules: Iterable[nn.Module], run: Callable[[], Any]) -> tuple[Cost, Any]:
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


def _meta(*shape: int) -> Tensor:
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


def _checked_size(image_size: Sequence[int]) -> tuple[int, int]:
    if len(image_size) != 2:
        raise UserError(f"image size must be height and width, got {tuple(image_size)}")
    height, width = image_size
    _check_positive("image height", height)
    _check_positive("image width", width)
    return height, width


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name} must be at least 1, got {value}")


def _check_detector(model: nn.Module) -> None:
    if not isinstance(model, GeneralizedRCNN):
        raise UserError(
            f"the costs of a {type(model).__name__} cannot be counted, only those of a "
            f"GeneralizedRCNN; count_backbone() takes a bare backbone"
        )
    heads = model.roi_heads
    for part, known in ((model.proposal_generator, RPN), (heads, StandardROIHeads)):
        if not isinstance(part, known):
            raise UserError(
                f"the costs of a detector with {type(part).__name__} cannot be counted, only "
                f"with {known.__name__} or its subclasses"
            )
    if heads.keypoint_on:
        raise UserError("the costs of a detector with a keypoint head cannot be counted")


def _check_nothing_is_missed(model: nn.Module, costs: Costs) -> None:
    """Checks that the parts have all weights of the model, so that no cost is left out."""
    expected, got = sum(weight.numel() for weight in model.parameters()), costs.total.parameters
    if expected != got:
        raise UserError(
            f"the costs of this {type(model).__name__} cannot be counted: it has {expected} "
            f"parameters, its known parts have {got}"
        )
