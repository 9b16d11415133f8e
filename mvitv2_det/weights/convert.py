"""Converting weights from any source to the file formats of others."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from .files import TORCH_ENDINGS, check_target, write_weights
from .key_maps import DETECTOR_PREFIX, MVIT, TIMM, Format, to_target
from .sources import Checkpoint, Source, read_source


@dataclass(frozen=True)
class _Target:
    """A format to write: its table, or None for a detector's names; what the weights stand under
    in a torch file; the endings of its files."""

    format: Format | None
    key: str | None
    endings: tuple[str, ...]


TARGETS = {
    "timm": _Target(TIMM, None, (".safetensors", *TORCH_ENDINGS)),
    "mvit": _Target(MVIT, "model_state", TORCH_ENDINGS),
    "detectron2": _Target(None, "model", (".pkl", *TORCH_ENDINGS)),
    "safetensors": _Target(None, None, (".safetensors",)),
}


@dataclass(frozen=True)
class Conversion:
    """What converting did.

    Attributes:
        source: where the weights are from.
        source_format, target_format: whose names they had and have.
        written: names in the new file.
        dropped: names in the source of what the target has no names for.
    """

    source: str
    source_format: str
    target_format: str
    written: tuple[str, ...]
    dropped: tuple[str, ...]


def convert_weights(
    source: Source, target: str | Path, to: str | None = None, strict: bool = False
) -> Conversion:
    """Writes weights of any source under other names, into a file of another kind.

    Args:
        source: as in :func:`mvitv2_det.load_weights`.
        target: the file to write; its ending says its kind.
        to: ``timm`` or ``mvit``: the backbone and classifier under their names; ``detectron2`` or
            ``safetensors``: everything under a detector's. By default as the ending suggests:
            ``mvit`` for ``.pyth``, ``safetensors`` for ``.safetensors``, else ``detectron2``.
        strict: raise instead of dropping tensors that the target has no names for.

    Raises:
        UserError: the source cannot be read, the target cannot be written or not in that format,
            or a tensor would be dropped.
    """
    path = Path(target)
    check_target(path)
    to = to or {".pyth": "mvit", ".safetensors": "safetensors"}.get(path.suffix, "detectron2")
    if to not in TARGETS:
        raise UserError(f"there is no target format {to!r}; there are {', '.join(TARGETS)}")
    if path.suffix not in TARGETS[to].endings:
        raise UserError(
            f"a file of {to} must end in {', '.join(TARGETS[to].endings)}, got {path.name!r}"
        )
    checkpoint = read_source(source)
    weights, dropped = _renamed(checkpoint, TARGETS[to].format)
    if strict and dropped:
        raise UserError(
            f"{checkpoint.source}: {to} has no names for {len(dropped)} tensors: "
            f"{', '.join(dropped[:3])}"
        )
    write_weights(weights, path, TARGETS[to].key)
    return Conversion(checkpoint.source, checkpoint.format, to, tuple(weights), tuple(dropped))


def _renamed(checkpoint: Checkpoint, format: Format | None) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under a format's names, and what is dropped under the source's."""
    if format is None:
        return checkpoint.weights, []
    if checkpoint.layout is None:
        raise UserError(f"checkpoint {checkpoint.source!r} holds no MViT")
    renamed, unknown = to_target(checkpoint.backbone, format)
    dropped = {f"{DETECTOR_PREFIX}{name}" for name in unknown}
    dropped |= {name for name in checkpoint.weights if not name.startswith(DETECTOR_PREFIX)}
    return renamed, [theirs for ours, theirs in checkpoint.own_names.items() if ours in dropped]
