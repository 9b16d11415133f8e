"""Loading of weights from any source into a model, with a report."""

import dataclasses
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError, readable
from .key_maps import (
    ABSOLUTE_POSITIONS,
    CLASS_POSITION,
    CLASS_TOKEN,
    CLASSIFIER,
    DETECTOR_PREFIX,
    FINAL_NORM,
    SPATIAL_POSITIONS,
    TEMPORAL_POSITIONS,
    without_prefix,
)
from .layout import PATCHES, Layout
from .report import LoadReport, Reshaped, shortened
from .reshape import (
    INFLATIONS,
    aligned_tables,
    centre_frame,
    has_class_position,
    inflated,
    resized_positions,
)
from .sources import (
    Checkpoint,
    Source,
    detector_name,
    has_output_norms,
    is_output_norm,
    read_source,
)

logger = logging.getLogger(__name__)

_PATCHES, _CLASS_TOKEN = (DETECTOR_PREFIX + name for name in (PATCHES, CLASS_TOKEN))
_CLASSIFIER = {DETECTOR_PREFIX + name for name in CLASSIFIER}
# What a classification network has after its last block, and the backbone of a detector has not.
_NORM_AND_CLASSIFIER = _CLASSIFIER | {DETECTOR_PREFIX + name for name in FINAL_NORM}
# Tensors that a detector takes from its config; old checkpoints hold them as well.
_SET_BY_CONFIG = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.")


def load_weights(
    model: nn.Module,
    source: Source,
    strict: bool = False,
    *,
    inflate: str = "centre",
    tables: str = "as_is",
    classes: str = "all",
) -> LoadReport:
    """Loads MViTv2 weights from any source into a model, and logs a report on each tensor.

    The weights of a backbone can be loaded into a detector, those of a detector into a backbone or
    a recogniser, and so on: what both have is loaded. Last norm, classifier and class token go
    where the model has them. Position tables are resized to the size of the model's, with the
    interpolation of the forward pass (section 4.2). If an error is raised, the model is left
    unchanged.

    An image network is inflated to one of clips as in section 4.3, its temporal positions are zero;
    of the filters of a clip network an image network gets the centre frame.

    A classifier of another number of classes stays as it was initialised, which the report says and
    ``strict`` refuses.

    Args:
        model: an ``MViT``, an ``MViT`` with an FPN, a detector, or a ``Recognizer``; it may be
            wrapped in ``DistributedDataParallel`` or ``DataParallel``.
        source: a path, a URL, ``detectron2://…`` or ``timm://mvitv2_tiny``; or a mapping from
            names to tensors; or a module, for example one of timm or torchvision.
        strict: raise an error if a tensor of the source or of the model is left over that
            weights of this kind do not normally leave over.
        inflate: an image network's filter in a clip network is put into the ``centre`` frame, given
            to all frames as their ``mean``, or given whole to each (``repeat``).
        tables: spatial relative position tables are taken row for row (``as_is``), or ``aligned``,
            so that each row means the same distance where keys and values have other strides; see
            :func:`mvitv2_det.weights.reshape.aligned_tables`.
        classes: ``first`` takes the first outputs of a classifier that has more classes than the
            model: the first 1,000 of ImageNet-21K's 19,168 are those of ImageNet-1K.

    Returns:
        The report, which names every tensor of the source and of the model.

    Raises:
        UserError: the weights cannot be read, belong to a network of another size, or do not fit,
            or a keyword has another value than these.
    """
    _check_choice("inflate", inflate, INFLATIONS)
    _check_choice("tables", tables, ("as_is", "aligned"))
    _check_choice("classes", classes, ("all", "first"))
    checkpoint = read_source(source)
    while isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        model = model.module
    target = _Target.of(model)
    fitted, report = _fit(checkpoint, target, inflate, tables, classes)
    if strict:
        report.check_strict()
    with torch.no_grad():
        for name, value in fitted.items():
            target.weights[name].copy_(value)
    logger.info(report.table())
    not_finite = [
        target.own_names[name]
        for name, value in fitted.items()
        if not value.is_meta and not value.isfinite().all()
    ]
    if not_finite:
        logger.warning(
            "%d of the tensors of %s have values that are not finite; a network with them finds "
            "nothing: %s",
            len(not_finite),
            report.source,
            readable(", ".join(shortened(not_finite))),
        )
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
    """

    weights: dict[str, Tensor]
    own_names: dict[str, str]
    layout: Layout | None

    @property
    def is_of_clips(self) -> bool:
        """Whether the filters of the model's MViT have frames."""
        return self.layout is not None and self.weights[_PATCHES].dim() == 5

    @classmethod
    def of(cls, model: nn.Module) -> "_Target":
        backbones = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, _mvit_classes())
        ]
        if len(backbones) > 1:
            raise UserError(
                f"the model has {len(backbones)} MViTs ({', '.join(n for n, _ in backbones)}): "
                f"load weights into each alone"
            )
        prefix = DETECTOR_PREFIX
        for name, _ in backbones:
            prefix = f"{name}." if name else ""
        state = model.state_dict(keep_vars=True)
        weights = {detector_name(name, prefix): value for name, value in state.items()}
        return cls(
            weights,
            dict(zip(weights, state, strict=True)),
            Layout.of(without_prefix(weights, DETECTOR_PREFIX)) if backbones else None,
        )


def _check_choice(keyword: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{keyword} must be one of {', '.join(choices)}, got {value!r}")


def _mvit_classes() -> tuple[type, ...]:
    """This project's and Detectron2's MViTs; where a module is not imported, there is none of it.

    So a recogniser needs no Detectron2 to be loaded.
    """
    found = (
        getattr(sys.modules.get(module), name, None)
        for module, name in (
            ("mvitv2_det.recognition.recognizer", "Recognizer"),
            ("mvitv2_det.backbone.mvit", "MViT"),
            ("detectron2.modeling", "MViT"),
        )
    )
    return tuple(kind for kind in found if isinstance(kind, type))


def _fit(
    checkpoint: Checkpoint, target: _Target, inflate: str, tables: str, classes: str
) -> tuple[dict[str, Tensor], LoadReport]:
    """Returns the tensors to copy, by their names in a detector, and the report on them."""
    _check_layouts(checkpoint, target)
    # A model on the meta device takes shapes alone, which all tensors have.
    with_values = {name for name, weight in target.weights.items() if not weight.is_meta}
    checkpoint.check_plain(name for name in checkpoint.weights if name in with_values)
    becomes_clips = (
        target.is_of_clips and checkpoint.layout is not None and not checkpoint.is_of_clips
    )
    if becomes_clips:
        checkpoint = _with_spatial_positions(checkpoint)
    aligned = _aligned(checkpoint, target) if tables == "aligned" else {}
    fitted, reshaped, misfits = {}, {}, {}
    for name, value in checkpoint.weights.items():
        if name not in target.weights:
            continue
        wanted, how = target.weights[name], "resized"
        old, new = tuple(value.shape), tuple(wanted.shape)
        if name in aligned:
            value, moved = aligned[name]
            how = "aligned at distance zero" if moved else ""
        elif (value.dim(), wanted.dim()) == (4, 5):
            value = inflated(value, wanted.shape[2], inflate)
            how = f"inflated by {inflate}"
        elif (value.dim(), wanted.dim()) == (5, 4):
            value, how = centre_frame(value), "reduced to the centre frame"
        elif name in _CLASSIFIER and classes == "first" and len(value) > len(wanted):
            value, how = value[: len(wanted)], "first outputs of"
        else:
            value = resized_positions(name.removeprefix(DETECTOR_PREFIX), value, wanted)
            how = "resized" if old != new else ""
        if value.shape == new:
            fitted[name] = value
            if how:
                reshaped[name] = Reshaped(target.own_names[name], old, new, how)
        elif name.startswith(DETECTOR_PREFIX) and name not in _CLASSIFIER:
            raise UserError(
                f"checkpoint {checkpoint.source!r}: {checkpoint.own_names[name]} has shape {old}, "
                f"the model's {target.own_names[name]} {new}"
            )
        else:
            misfits[name] = Reshaped(target.own_names[name], old, new)
    if not fitted:
        raise UserError(f"checkpoint {checkpoint.source!r} has no tensor that the model has")
    zeroed = [n for n in target.weights if becomes_clips and n not in fitted and _is_temporal(n)]
    fitted |= {name: torch.zeros_like(target.weights[name]) for name in zeroed}
    report = _report(checkpoint, target, fitted, reshaped, misfits)
    return fitted, dataclasses.replace(
        report,
        loaded=tuple(n for n in report.loaded if n not in {target.own_names[z] for z in zeroed}),
        zeroed=tuple(target.own_names[name] for name in zeroed),
        tables=tables if becomes_clips else "",
    )


def _is_temporal(name: str) -> bool:
    return name.rpartition(".")[2].startswith(("rel_pos_t", TEMPORAL_POSITIONS))


def _with_spatial_positions(checkpoint: Checkpoint) -> Checkpoint:
    """Gives the absolute positions of an image network the names that they have in one of clips."""
    positions = checkpoint.backbone.get(ABSOLUTE_POSITIONS)
    if positions is None:
        return checkpoint
    start = int(has_class_position(positions))
    parts = {SPATIAL_POSITIONS: positions[:, start:]}
    if start:
        parts[CLASS_POSITION] = positions[:, :1]
    whole = DETECTOR_PREFIX + ABSOLUTE_POSITIONS
    weights = {name: value for name, value in checkpoint.weights.items() if name != whole}
    own_names = dict(checkpoint.own_names)
    own_name = own_names.pop(whole)
    for name, value in parts.items():
        weights[DETECTOR_PREFIX + name] = value
        own_names[DETECTOR_PREFIX + name] = own_name
    return dataclasses.replace(checkpoint, weights=weights, own_names=own_names)


def _aligned(checkpoint: Checkpoint, target: _Target) -> dict[str, tuple[Tensor, bool]]:
    ours = without_prefix(target.weights, DETECTOR_PREFIX)
    try:
        aligned = aligned_tables(checkpoint.backbone, ours)
    except UserError as error:
        raise UserError(f"checkpoint {checkpoint.source!r}: {error}") from error
    return {f"{DETECTOR_PREFIX}{name}": value for name, value in aligned.items()}


def _report(
    checkpoint: Checkpoint,
    target: _Target,
    fitted: dict[str, Tensor],
    reshaped: dict[str, Reshaped],
    misfits: dict[str, Reshaped],
) -> LoadReport:
    initialised = [name for name in target.weights if name not in fitted]
    unused = [name for name in checkpoint.weights if name not in target.weights]
    new_parts = {_part(name) for name in target.weights} - {_part(n) for n in checkpoint.weights}
    spare_parts = {_part(n) for n in checkpoint.weights} - {_part(name) for name in target.weights}

    def is_absent(name: str, names: Mapping[str, Tensor]) -> bool:
        """Whether ``names`` lack what the tensor belongs to, as networks for other tasks do."""
        in_backbone = name.removeprefix(DETECTOR_PREFIX)
        if is_output_norm(in_backbone):
            return not has_output_norms(without_prefix(names, DETECTOR_PREFIX))
        return name in _NORM_AND_CLASSIFIER and not _NORM_AND_CLASSIFIER & set(names)

    def is_new(name: str) -> bool:
        return (
            is_absent(name, checkpoint.weights)
            or _part(name) in new_parts
            or name.startswith(_SET_BY_CONFIG)
        )

    def is_spare(name: str) -> bool:
        return (
            is_absent(name, target.weights)
            or name == _CLASS_TOKEN
            or name == DETECTOR_PREFIX + CLASS_POSITION
            or (_is_temporal(name) and not target.is_of_clips)
            or _part(name) in spare_parts
            or name.startswith(_SET_BY_CONFIG)
        )

    own, theirs = target.own_names, checkpoint.own_names
    return LoadReport(
        source=checkpoint.source,
        format=checkpoint.format,
        loaded=tuple(own[name] for name in fitted if name not in reshaped),
        resized=tuple(reshaped.values()),
        misfits=tuple(misfits.values()),
        zeroed=(),
        tables="",
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
