"""Multiply-adds and parameters of detectors, the cost columns of the paper's Table 5.

Counted by the rules of fvcore, as the paper does: one multiply-add is one operation; a layer
norm costs 5 per element, a batch norm in evaluation 2, nearest upsampling and adaptive average
pooling 1; activations, softmax, additions, max pooling, resizing of position tables and
ROIAlign are free. A fused attention, which fvcore does not know, costs its two products.
PyTorch's own counter does the work, on the meta device: nothing is computed and no weights are
held, so that every size can be counted anywhere.

A detector decides how much it does (non-maximum suppression), which no device without data can
follow. Its parts are therefore run one by one on inputs of given sizes.
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
    """What one part of a network costs for one image.

    Attributes:
        name: of the part.
        macs: multiply-adds, without those of batch norm: Detectron2's counting ignores them.
        batch_norm_macs: those of batch norm alone, as fvcore counts them.
        parameters: number of trained and frozen weights.
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
    """What a detector costs for one image.

    Attributes:
        parts: in the order they run: ``bottom-up`` and ``FPN`` (or ``backbone`` where there is
            no FPN), ``RPN head``, ``box heads`` and, where there is one, ``mask head``.
        image_size: (H, W) of the image in pixels, before the detector pads it.
        proposals: regions that each stage of the box heads sees.
        detections: regions that the mask head sees.
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
        """The part of that name.

        Raises:
            KeyError: there is none.
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
    """Counts the parts of a detector; the defaults are the protocol that gives Table 5.

    Args:
        cfg_or_model: a config with a ``model`` key, a LazyCall of a model, or a model, which is
            left as it is.
        image_size: (H, W) of the image in pixels, before the detector pads it.
        proposals: regions that each stage of the box heads sees.
        detections: regions that the mask head sees.

    Raises:
        UserError: a number is not positive, or the model is no ``GeneralizedRCNN`` of an RPN and
            ``StandardROIHeads`` or ``CascadeROIHeads``, or has parts that are not known here.
    """
    size = _checked_size(image_size)
    _check_positive("proposals", proposals)
    _check_positive("detections", detections)
    model = _on_meta(cfg_or_model)
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
    """Counts a bare backbone, or any other module that takes images.

    Args:
        cfg_or_backbone: a LazyCall or a module, which is left as it is.
        image_size: (H, W) of the image in pixels.
        channels: of the image.

    Raises:
        UserError: a number is not positive.
    """
    height, width = _checked_size(image_size)
    backbone = _on_meta(cfg_or_backbone)
    return _count("backbone", [backbone], lambda: backbone(_meta(1, channels, height, width)))[0]


def _on_meta(cfg_or_model: DictConfig | nn.Module) -> nn.Module:
    """The model on the meta device, for evaluation; a given model keeps its own device."""
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
    # deepcopy leaves out what it finds copied already: no second set of weights is made.
    copied = {id(weight): torch.empty_like(weight, device="meta") for weight in weights}
    return copy.deepcopy(cfg_or_model, copied).eval()


class _Counted(nn.Module):
    """Stands in for a network within another, and keeps the cost of its last run."""

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
    """The costs of the backbone, the FPN apart where there is one, and the feature maps."""
    # The padding of GeneralizedRCNN.preprocess_image.
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
    """Every box head with its predictor: one, or one for each stage of the cascade."""
    if isinstance(heads, CascadeROIHeads):
        stages = list(zip(heads.box_head, heads.box_predictor, strict=True))
    else:
        stages = [(heads.box_head, heads.box_predictor)]
    regions = _regions(features, heads.box_in_features, heads.box_pooler, proposals)

    def run() -> None:
        for head, predictor in stages:
            predictor(head(regions))

    return _count("box heads", chain(*stages), run)[0]


def _count_mask_head(heads: StandardROIHeads, features: dict[str, Tensor], detections: int) -> Cost:
    if heads.mask_pooler is None or not hasattr(heads.mask_head, "layers"):
        raise UserError(
            f"the costs of the mask head {type(heads.mask_head).__name__} cannot be counted, only "
            f"those of one with layers() that takes pooled regions"
        )
    regions = _regions(features, heads.mask_in_features, heads.mask_pooler, detections)
    # layers() is the network alone: forward() also picks the mask of the predicted class.
    return _count("mask head", [heads.mask_head], lambda: heads.mask_head.layers(regions))[0]


def _regions(
    features: dict[str, Tensor], names: Sequence[str], pooler: nn.Module, number: int
) -> Tensor:
    """What the pooler makes of the feature maps: (number, C, pooled height, pooled width)."""
    return _meta(number, features[names[0]].shape[1], *pooler.output_size)


def _count(name: str, modules: Iterable[nn.Module], run: Callable[[], Any]) -> tuple[Cost, Any]:
    """The cost of what ``run`` does, with the parameters of ``modules``; and what it returns."""
    with FlopCounterMode(display=False, custom_mapping=_RULES) as counter, torch.no_grad():
        result = run()
    operations = counter.get_flop_counts().get("Global", {})
    batch_norm = sum(operations.get(kind, 0) for kind in BATCH_NORMS)
    other = sum(operations.values()) - batch_norm
    parameters = sum(weight.numel() for module in modules for weight in module.parameters())
    return Cost(name, other // 2, batch_norm // 2, parameters), result


def _meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


# fvcore's rules for what PyTorch's counter leaves out. That counter counts a multiply-add as two
# operations, hence the factors of two.


def _layer_norm_flops(x_shape, normalized_shape, weight_shape, *_, **__) -> int:
    return 2 * prod(x_shape) * (4 if weight_shape is None else 5)


def _batch_norm_flops(x_shape, weight_shape, *_, **__) -> int:
    """In evaluation, where the statistics are given."""
    return 2 * prod(x_shape) * (1 if weight_shape is None else 2)


def _group_norm_flops(x_shape, weight_shape, *_, **__) -> int:
    return 2 * prod(x_shape) * (4 if weight_shape is None else 5)


def _input_flops(x_shape, *_, **__) -> int:
    return 2 * prod(x_shape)


def _output_flops(*_, out_shape, **__) -> int:
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
    """Weights outside of the parts would cost something that no part shows."""
    expected, got = sum(weight.numel() for weight in model.parameters()), costs.total.parameters
    if expected != got:
        raise UserError(
            f"the costs of this {type(model).__name__} cannot be counted: it has {expected} "
            f"parameters, its known parts have {got}"
        )
