"""Conversion of weights from any source to the file formats of other projects."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from .files import TORCH_ENDINGS, check_target, write_weights
from .key_maps import (
    DETECTOR_PREFIX,
    MVIT,
    PYSLOWFAST,
    TIMM,
    TORCHVISION,
    Format,
    to_target,
)
from .reshape import centre_frame
from .sources import Checkpoint, Source, read_source


@dataclass(frozen=True)
class _Target:
    """A format that can be written.

    Attributes:
        format: the table of its names; None keeps the names of a detector.
        key: key of the weights in a torch file; None if the file holds nothing but weights.
        endings: file name endings that the format may have.
        has_frames: whether filters of clips can be written; the others get their centre frame.
    """

    format: Format | None
    key: str | None
    endings: tuple[str, ...]
    has_frames: bool = False


TARGETS = {
    "timm": _Target(TIMM, None, (".safetensors", *TORCH_ENDINGS)),
    "mvit": _Target(MVIT, "model_state", TORCH_ENDINGS),
    "pyslowfast": _Target(PYSLOWFAST, "model_state", TORCH_ENDINGS, has_frames=True),
    "torchvision": _Target(TORCHVISION, None, (".safetensors", *TORCH_ENDINGS), has_frames=True),
    "detectron2": _Target(None, "model", (".pkl", *TORCH_ENDINGS)),
    "safetensors": _Target(None, None, (".safetensors",), has_frames=True),
}


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        source: path, URL or description of the source.
        source_format, target_format: formats of the names before and after.
        written: names of the tensors in the new file.
        dropped: names, in the source, of the tensors that the target format has no name for.
        reduced: names, in the source, of the filters of clips of which the centre frame alone was
            written, because the target format is of images.
    """

    source: str
    source_format: str
    target_format: str
    written: tuple[str, ...]
    dropped: tuple[str, ...]
    reduced: tuple[str, ...]


def convert_weights(
    source: Source, target: str | Path, to: str | None = None, strict: bool = False
) -> Conversion:
    """Writes the weights of any source to a file, under the names of another format.

    Args:
        source: any source that :func:`mvitv2_det.load_weights` takes.
        target: the file to write; its ending selects the kind of file.
        to: ``timm``, ``mvit``, ``pyslowfast`` or ``torchvision`` writes the backbone and the
            classifier under the names of that project; ``detectron2`` or ``safetensors`` writes
            all tensors under the names of a detector. Of clips' filters, ``timm``, ``mvit`` and
            ``detectron2`` get the centre frame. The default depends on the ending: ``mvit`` for
            ``.pyth``, ``safetensors`` for ``.safetensors``, otherwise ``detectron2``.
        strict: raise an error instead of dropping tensors that the target has no name for, or
            frames of filters.

    Raises:
        UserError: the source cannot be read, the target cannot be written, its ending does not
            belong to the format, a network of images is to be torchvision's, or ``strict`` is set
            and something would be dropped.
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
    checkpoint.check_plain(checkpoint.weights)
    if to == "torchvision" and not checkpoint.is_of_clips:
        raise UserError(
            f"checkpoint {checkpoint.source!r} is no network of clips, as torchvision's MViTs are: "
            f"write timm or mvit"
        )
    weights, dropped = _renamed(checkpoint, TARGETS[to].format)
    if strict and dropped:
        raise UserError(
            f"{checkpoint.source}: {to} has no names for {len(dropped)} tensors: "
            f"{', '.join(dropped[:3])}"
        )
    reduced: list[str] = []
    if not TARGETS[to].has_frames:
        reduced = [checkpoint.own_names[n] for n, v in checkpoint.weights.items() if v.dim() == 5]
        weights = {name: centre_frame(value) for name, value in weights.items()}
    if strict and reduced:
        raise UserError(
            f"{checkpoint.source}: {to} has no frames, and {len(reduced)} filters have: write "
            f"pyslowfast, or leave strict out to keep their centre frame"
        )
    write_weights(weights, path, TARGETS[to].key)
    return Conversion(
        checkpoint.source, checkpoint.format, to, tuple(weights), tuple(dropped), tuple(reduced)
    )


def _renamed(checkpoint: Checkpoint, format: Format | None) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the weights under the names of a format, and the source's names of the dropped."""
    if format is None:
        return checkpoint.weights, []
    if checkpoint.layout is None:
        raise UserError(f"checkpoint {checkpoint.source!r} holds no MViT")
    renamed, unknown = to_target(checkpoint.backbone, format)
    dropped = {f"{DETECTOR_PREFIX}{name}" for name in unknown}
    dropped |= {name for name in checkpoint.weights if not name.startswith(DETECTOR_PREFIX)}
    return renamed, [theirs for ours, theirs in checkpoint.own_names.items() if ours in dropped]
