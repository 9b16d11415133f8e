"""Loading of weights from any source into a model, with a report."""

import logging
import math
from dataclasses import dataclass

import torch
from detectron2.modeling import MViT as Detectron2MViT
from torch import Tensor, nn

from ..attention.position import TABLE_NAMES, resize_grid, resize_table
from ..backbone.mvit import MViT
from ..errors import UserError
from .key_maps import (
    ABSOLUTE_POSITIONS,
    CLASS_TOKEN,
    CLASSIFIER,
    DETECTOR_PREFIX,
    FINAL_NORM,
    without_prefix,
)
from .layout import Layout
from .report import LoadReport, Reshaped
from .sources import (
    Checkpoint,
    Source,
    detector_name,
    has_output_norms,
    is_output_norm,
    read_source,
)

logger = logging.getLogger(__name__)

# Tensors of a classification network that the backbone of a detector does not have.
_CLASSIFICATION_ONLY = {
    f"{DETECTOR_PREFIX}{name}" for name in (*FINAL_NORM, *CLASSIFIER, CLASS_TOKEN)
}
# Tensors that a detector takes from its config; old checkpoints hold them as well.
_SET_BY_CONFIG = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.")


def load_weights(model: nn.Module, source: Source, strict: bool = False) -> LoadReport:
    """Loads MViTv2 weights from any source into a model, and logs a report on each tensor.

    The weights of a backbone can be loaded into a detector, and those of a detector into a
    backbone. Position tables are resized to the size of the model's, with the interpolation of the
    forward pass (section 4.2). A class token is dropped; its absolute position is kept if the
    model has a place for it. If an error is raised, the model is left unchanged.

    Args:
        model: an ``MViT``, an ``MViT`` with an FPN, or a detector; it may be wrapped in
            ``DistributedDataParallel`` or ``DataParallel``.
        source: a path, a URL, ``detectron2://…`` or ``timm://mvitv2_tiny``; or a mapping from
            names to tensors; or a module, for example one of timm.
        strict: raise an error if a tensor of the source or of the model is left over that
            weights of this kind do not normally leave over.

    Returns:
        The report, which names every tensor of the source and of the model.

    Raises:
        UserError: the weights cannot be read, belong to a network of another size, or do not fit.
    """
    checkpoint = read_source(source)
    while isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        model = model.module
    target = _Target.of(model)
    fitted, report = _fit(checkpoint, target)
    if strict:
        report.check_strict()
    with torch.no_grad():
        for name, value in fitted.items():
            target.weights[name].copy_(value)
    logger.info(report.table())
    if report.unexpected:
        logger.warning(
            "%d of the tensors do not fit the weights of %s; train.strict=true stops here",
            len(report.unexpected),
            report.source,
        )
    return report


@dataclass(frozen=True)
class _Target:
    """The tensors of the model that is loaded.

    Attributes:
        weights: tensors by the names that they have in a detector.
        own_names: the model's names of the tensors, by the names in a detector.
        layout: layout of the model's MViT; None if it has none.
        keeps_class_position: whether the absolute positions include one for a class token.
    """

    weights: dict[str, Tensor]
    own_names: dict[str, str]
    layout: Layout | None
    keeps_class_position: bool

    @classmethod
    def of(cls, model: nn.Module) -> "_Target":
        backbones = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, (MViT, Detectron2MViT))
        ]
        if len(backbones) > 1:
            raise UserError(
                f"the model has {len(backbones)} MViTs ({', '.join(n for n, _ in backbones)}): "
                f"load weights into each alone"
            )
        prefix, keeps_class_position = DETECTOR_PREFIX, False
        for name, module in backbones:
            prefix = f"{name}." if name else ""
            keeps_class_position = module.pretrain_use_cls_token
        state = model.state_dict(keep_vars=True)
        weights = {detector_name(name, prefix): value for name, value in state.items()}
        return cls(
            weights,
            dict(zip(weights, state, strict=True)),
            Layout.of(without_prefix(weights, DETECTOR_PREFIX)) if backbones else None,
            keeps_class_position,
        )


def _fit(checkpoint: Checkpoint, target: _Target) -> tuple[dict[str, Tensor], LoadReport]:
    """Returns the tensors to copy, by their names in a detector, and the report on them."""
    _check_layouts(checkpoint, target)
    fitted, resized, misfits = {}, {}, {}
    for name, value in checkpoint.weights.items():
        if name not in target.weights:
            continue
        old, new = tuple(value.shape), tuple(target.weights[name].shape)
        value = _resized(name, value, target)
        if value.shape == new:
            fitted[name] = value
            if old != new:
                resized[name] = Reshaped(target.own_names[name], old, new)
        elif name.startswith(DETECTOR_PREFIX):
            raise UserError(
                f"checkpoint {checkpoint.source!r}: {checkpoint.own_names[name]} has shape {old}, "
                f"the model's {target.own_names[name]} {new}"
            )
        else:
            misfits[name] = Reshaped(target.own_names[name], old, new)
    if not fitted:
        raise UserError(f"checkpoint {checkpoint.source!r} has no tensor that the model has")
    for cut in checkpoint.cut:
        if cut.name in fitted:
            resized[cut.name] = Reshaped(target.own_names[cut.name], cut.old, cut.new)
    return fitted, _report(checkpoint, target, fitted, resized, misfits)


def _report(
    checkpoint: Checkpoint,
    target: _Target,
    fitted: dict[str, Tensor],
    resized: dict[str, Reshaped],
    misfits: dict[str, Reshaped],
) -> LoadReport:
    initialised = [name for name in target.weights if name not in fitted]
    unused = [name for name in checkpoint.weights if name not in target.weights]
    new_parts = {_part(name) for name in target.weights} - {_part(n) for n in checkpoint.weights}
    spare_parts = {_part(n) for n in checkpoint.weights} - {_part(name) for name in target.weights}
    brings_output_norms = has_output_norms(checkpoint.backbone)

    def is_new(name: str) -> bool:
        in_backbone = name.removeprefix(DETECTOR_PREFIX)
        is_new_norm = is_output_norm(in_backbone) and not brings_output_norms
        return is_new_norm or _part(name) in new_parts or name.startswith(_SET_BY_CONFIG)

    def is_spare(name: str) -> bool:
        return (
            name in _CLASSIFICATION_ONLY
            or name.endswith(".attn.rel_pos_t")
            or _part(name) in spare_parts
            or name.startswith(_SET_BY_CONFIG)
        )

    own, theirs = target.own_names, checkpoint.own_names
    return LoadReport(
        source=checkpoint.source,
        format=checkpoint.format,
        loaded=tuple(own[name] for name in fitted if name not in resized),
        resized=tuple(resized.values()),
        misfits=tuple(misfits.values()),
        initialised=tuple(own[name] for name in initialised),
        unused=tuple(theirs[name] for name in unused),
        unexpected=tuple(own[name] for name in initialised if not is_new(name))
        + tuple(theirs[name] for name in unused if not is_spare(name)),
    )


def _part(name: str) -> str:
    """Finds the part of a detector that a name belongs to: the backbone, the FPN, or a head."""
    return DETECTOR_PREFIX if name.startswith(DETECTOR_PREFIX) else name.partition(".")[0]


def _check_layouts(checkpoint: Checkpoint, target: _Target) -> None:
    theirs, ours = checkpoint.layout, target.layout
    if theirs is None or ours is None or theirs == ours:
        return
    if (theirs.embed_dim, theirs.blocks) != (ours.embed_dim, ours.blocks):
        raise UserError(
            f"checkpoint {checkpoint.source!r} is of {theirs}, the model is {ours}: choose the "
            f"config of that size"
        )
    where = {True: "the attention that starts a stage", False: "the MLP that ends a stage"}
    value = theirs.expand_in_attention
    raise UserError(
        f"checkpoint {checkpoint.source!r} doubles its channels in {where[value]}, the model in "
        f"{where[not value]}: set expand_in_attention={value} "
        f"(model.backbone.bottom_up.expand_in_attention={str(value).lower()})"
    )


def _resized(name: str, value: Tensor, target: _Target) -> Tensor:
    """Resizes a position table to the size of the model's; returns other tensors unchanged."""
    wanted = target.weights[name]
    if name.rpartition(".")[2] in TABLE_NAMES and value.dim() == wanted.dim():
        return resize_table(_resizable(value, wanted), *wanted.shape[:-1])
    if name == DETECTOR_PREFIX + ABSOLUTE_POSITIONS and value.dim() == 3:
        return _resized_absolute(_resizable(value, wanted), wanted, target.keeps_class_position)
    return value


def _resizable(value: Tensor, wanted: Tensor) -> Tensor:
    """Converts half precision to float32, in which it is resized; keeps other types."""
    if value.shape == wanted.shape:
        return value
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _resized_absolute(value: Tensor, wanted: Tensor, keeps_class_position: bool) -> Tensor:
    """Resizes absolute positions (1, P, C) to the model's.

    The first position may be that of a class token. Only one of P and P - 1 can be a square
    number, which tells whether it is.
    """
    rows = value.shape[1]
    has_class_position = math.isqrt(rows) ** 2 != rows
    grid = value[:, 1:] if has_class_position else value
    side, new_side = math.isqrt(grid.shape[1]), math.isqrt(wanted.shape[1])
    if side**2 != grid.shape[1] or value.shape[2] != wanted.shape[2]:
        return value
    grid = resize_grid(grid.reshape(1, side, side, -1), (new_side, new_side)).flatten(1, 2)
    if not keeps_class_position:
        return grid
    # Detection never reads this row; without a class token in the source it stays unchanged.
    first = value[:, :1] if has_class_position else wanted[:, :1].to(grid)
    return torch.cat((first.to(grid.device), grid), dim=1)
