"""Counts of multiply-adds and parameters of detectors, the cost columns of the paper's Table 5.

The work of a whole detector depends on its predictions (non-maximum suppression), which the meta
device does not have. The parts of a detector are therefore run one by one on inputs of given
sizes, by the rules of :mod:`mvitv2_det.costs`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.structures import ImageList
from omegaconf import DictConfig
from torch import Tensor, nn

from ..costs import Cost, check_positive, count, meta, on_meta
from ..errors import UserError

IMAGE_SIZE = (800, 1280)
PROPOSALS = 1000
DETECTIONS = 100


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
    if len(image_size) != 2:
        raise UserError(f"image size must be height and width, got {tuple(image_size)}")
    size = image_size[0], image_size[1]
    check_positive("image height", size[0])
    check_positive("image width", size[1])
    check_positive("proposals", proposals)
    check_positive("detections", detections)
    model: GeneralizedRCNN = on_meta(cfg_or_model)
    _check_detector(model)
    parts, features = _count_pyramid(model.backbone, size)
    parts.append(_count_rpn_head(model.proposal_generator, features))
    parts.append(_count_box_heads(model.roi_heads, features, proposals))
    if model.roi_heads.mask_on:
        parts.append(_count_mask_head(model.roi_heads, features, detections))
    costs = Costs(tuple(parts), size, proposals, detections)
    _check_nothing_is_missed(model, costs)
    return costs


class _Counted(nn.Module):
    """Wrapper of a network within another network, which records the cost of its last run."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.network = network

    def forward(self, images: Tensor) -> Any:
        self.cost, result = count(self.name, [self.network], lambda: self.network(images))
        return result


def _count_pyramid(
    backbone: nn.Module, image_size: tuple[int, int]
) -> tuple[list[Cost], dict[str, Tensor]]:
    """Counts the backbone, and separately its FPN if it has one; also returns the feature maps."""
    # Padded as in GeneralizedRCNN.preprocess_image.
    images = ImageList.from_tensors(
        [meta(3, *image_size)],
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    ).tensor
    if isinstance(backbone, FPN):
        backbone.bottom_up = _Counted("bottom-up", backbone.bottom_up)
    whole, features = count("backbone", [backbone], lambda: backbone(images))
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
    return count("RPN head", [rpn.rpn_head], lambda: rpn.rpn_head(maps))[0]


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

    return count("box heads", chain.from_iterable(stages), run)[0]


def _count_mask_head(heads: StandardROIHeads, features: dict[str, Tensor], detections: int) -> Cost:
    if heads.mask_pooler is None or not hasattr(heads.mask_head, "layers"):
        raise UserError(
            f"the costs of the mask head {type(heads.mask_head).__name__} cannot be counted, only "
            f"those of one with layers() that takes pooled regions"
        )
    regions = _regions(features, heads.mask_in_features, heads.mask_pooler, detections)
    # layers() runs only the network; forward() would also select the mask of a class.
    return count("mask head", [heads.mask_head], lambda: heads.mask_head.layers(regions))[0]


def _regions(
    features: dict[str, Tensor], names: Sequence[str], pooler: ROIPooler, number: int
) -> Tensor:
    """Makes a tensor of the shape of pooled regions: (number, C, pooled height, pooled width)."""
    return meta(number, features[names[0]].shape[1], *pooler.output_size)


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
