"""Where weights come from, and what they are: a checkpoint under one set of names.

Beside paths, URLs and ``detectron2://``, Detectron2's path manager learns ``timm://NAME`` here.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, file_lock, get_cache_dir
from torch import Tensor, nn

from ..errors import UserError
from .files import read_weights, select_weights, write_weights
from .key_maps import (
    CLASSIFICATION_FORMATS,
    DETECTOR_PREFIX,
    MVIT,
    Format,
    backbone_prefix,
    from_source,
    source_layout,
    unwrapped,
    without_prefix,
)
from .layout import Layout
from .report import Reshaped

Source = str | Path | Mapping[str, Tensor] | nn.Module

# A detector without an MViT has these parts at least.
_DETECTOR_PARTS = ("backbone.", "proposal_generator.", "roi_heads.")


@dataclass(frozen=True)
class Checkpoint:
    """Weights from any source.

    Attributes:
        source: where they are from.
        format: whose names they had.
        weights: tensors under a detector's names: the backbone's under ``backbone.bottom_up.``
            and the names of :mod:`mvitv2_det.weights.layout`.
        cut: video filters, already cut to their centre frame.
        own_names: what each was called in the source.
    """

    source: str
    format: str
    weights: dict[str, Tensor]
    cut: tuple[Reshaped, ...]
    own_names: dict[str, str]

    @property
    def backbone(self) -> dict[str, Tensor]:
        """The backbone's tensors without their prefix."""
        return without_prefix(self.weights, DETECTOR_PREFIX)

    @property
    def layout(self) -> Layout | None:
        """The size of the MViT; None where there is none."""
        return Layout.of(self.backbone) if backbone_prefix(self.weights) is not None else None


def read_source(source: Source) -> Checkpoint:
    """Reads weights and finds out what they are.

    Args:
        source: a path, a URL, ``detectron2://…``, ``timm://NAME``, named tensors, or a module.

    Raises:
        UserError: they cannot be read, or are not an MViT's or a detector's.
    """
    if isinstance(source, nn.Module):
        title, source = type(source).__name__, source.state_dict()
    else:
        title = "weights given" if isinstance(source, Mapping) else str(source)
    if not isinstance(source, Mapping):
        source = read_weights(_local_path(title))
    try:
        return _identify(title, unwrapped(select_weights(source)))
    except UserError as error:
        raise UserError(f"checkpoint {title!r}: {error}") from error


def _local_path(source: str) -> str:
    try:
        path = PathManager.get_local_path(source)
    except UserError:
        raise
    except Exception as error:  # Whatever a network, a hub or a disk can raise.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"checkpoint {source!r} cannot be fetched: {reason}") from error
    if "://" in path:
        raise UserError(
            f"checkpoint {source!r} is no address that is known: use a path, a URL, "
            f"detectron2://… or timm://NAME"
        )
    return path


def _identify(source: str, weights: dict[str, Tensor]) -> Checkpoint:
    prefix = backbone_prefix(weights)
    if prefix == "" and not has_output_norms(weights):
        return _classification(source, weights, MVIT)
    if prefix is not None:
        names = {name: detector_name(name, prefix) for name in weights}
    elif any(name.startswith(_DETECTOR_PARTS) for name in weights):
        names = {name: name for name in weights}
    else:
        for format in CLASSIFICATION_FORMATS:
            if format.fits(weights):
                return _classification(source, weights, format)
        raise UserError(
            f"it holds neither an MViT nor a detector; its first tensors are "
            f"{', '.join(list(weights)[:3])}"
        )
    return Checkpoint(
        source,
        "detectron2",
        {names[name]: value for name, value in weights.items()},
        cut=(),
        own_names={ours: name for name, ours in names.items()},
    )


def _classification(source: str, weights: dict[str, Tensor], format: Format) -> Checkpoint:
    source_layout(weights, format)
    flat, cut, is_video = {}, {}, False
    for name, value in weights.items():
        flat[name] = centre_frame(value)
        if value.dim() == 5:
            cut[name] = value
        is_video |= value.dim() == 5 or name.endswith("rel_pos_t")
    renamed, unknown = from_source(flat, format)
    named = [(name, value) for group in (renamed, unknown) for name, value in group.items()]
    # Both groups keep the order that they have in the source.
    order = [name for name in flat if name not in unknown] + list(unknown)
    own_names = {
        f"{DETECTOR_PREFIX}{ours}": theirs for (ours, _), theirs in zip(named, order, strict=True)
    }
    ours_of = {theirs: ours for ours, theirs in own_names.items()}
    return Checkpoint(
        source,
        "pyslowfast" if is_video and format is MVIT else format.name,
        {f"{DETECTOR_PREFIX}{name}": value for name, value in named},
        cut=tuple(
            Reshaped(ours_of[name], tuple(value.shape), tuple(flat[name].shape))
            for name, value in cut.items()
        ),
        own_names=own_names,
    )


def centre_frame(weight: Tensor) -> Tensor:
    """(C', C, T, H, W) filters to (C', C, H, W): the inverse of the inflation of section 4.3,
    which puts an image network's filters into the centre frame; other tensors as they are."""
    return weight[:, :, weight.shape[2] // 2] if weight.dim() == 5 else weight


def has_output_norms(names: Mapping[str, Tensor]) -> bool:
    """Whether there are the norms that detection adds after each stage, in a backbone's names."""
    return any(is_output_norm(name) for name in names)


def is_output_norm(name: str) -> bool:
    """Whether a backbone's name is ``scaleN_norm.weight`` or ``.bias``."""
    module, _, _ = name.partition(".")
    return module.startswith("scale") and module.endswith("_norm")


def detector_name(name: str, prefix: str) -> str:
    """A name in a whole detector, of one in a model whose backbone has that prefix."""
    if name.startswith(prefix):
        return DETECTOR_PREFIX + name[len(prefix) :]
    return f"backbone.{name}" if prefix == "bottom_up." else name


class TimmHandler(PathHandler):
    """``timm://mvitv2_tiny``: pre-trained weights as ``timm.create_model`` finds them.

    They come through timm's hub and cache, and are kept as a ``.safetensors`` file in iopath's.
    """

    PREFIX = "timm://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs) -> str:
        name = path.removeprefix(self.PREFIX)
        if not timm.is_model(name) or not name.startswith("mvitv2_"):
            known = ", ".join(timm.list_models("mvitv2_*"))
            raise UserError(f"{path!r}: timm has no such MViTv2; it has {known}")
        file = Path(get_cache_dir(), "timm", f"{name}.safetensors")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(os.fspath(file)):
            if force or not file.is_file():
                try:
                    model = timm.create_model(name, pretrained=True)
                except Exception as error:  # Whatever timm's hub can raise.
                    reason = " ".join(str(error).split())[:200] or type(error).__name__
                    raise UserError(f"{path!r}: timm cannot get it: {reason}") from error
                write_weights(model.state_dict(), file, key=None)
        return os.fspath(file)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs):
        return open(self._get_local_path(path), mode, buffering)


PathManager.register_handler(TimmHandler())
