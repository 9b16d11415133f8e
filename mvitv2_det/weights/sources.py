"""Reading weights of any source, and renaming them to the names of a detector.

Released weights have names, which :mod:`mvitv2_det.weights.released` lists.
Importing this module adds ``timm://NAME`` to the addresses that Detectron2's path manager knows,
where Detectron2 is installed; otherwise files and URLs are found by a path manager of iopath.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import timm
import torch
from iopath.common.file_io import (
    HTTPURLHandler,
    PathHandler,
    PathManagerFactory,
    file_lock,
    get_cache_dir,
)
from torch import Tensor, nn

from ..errors import UserError
from ..suggestions import did_you_mean
from .files import other_entries, read_checkpoint, select_weights, write_weights
from .key_maps import (
    CLASSIFICATION_FORMATS,
    DETECTOR_PREFIX,
    MVIT,
    OF_CLIPS,
    Format,
    backbone_prefix,
    from_source,
    unwrapped,
    without_prefix,
)
from .layout import PATCHES, Layout
from .released import fetch, find_released, released_weights

try:
    from detectron2.utils.file_io import PathManager
except ImportError:
    PathManager = PathManagerFactory.get(defaults_setup=False)
    PathManager.register_handler(HTTPURLHandler())

# Prefixes of the names in a detector without an MViT.
_DETECTOR_PARTS = ("backbone.", "proposal_generator.", "roi_heads.")


@dataclass(frozen=True)
class Checkpoint:
    """Weights of any source, renamed.

    Attributes:
        source: path, URL or description of the source.
        format: the format of the names in the source.
        weights: tensors by their names in a detector; those of the backbone are
            ``backbone.bottom_up.`` followed by a name of :mod:`mvitv2_det.weights.layout`.
        own_names: names in the source, by the names in ``weights``.
        others: entries of a checkpoint beside its weights, by their names.
    """

    source: str
    format: str
    weights: dict[str, Tensor]
    own_names: dict[str, str]
    others: dict[str, Any] = field(default_factory=dict)

    @property
    def backbone(self) -> dict[str, Tensor]:
        """The backbone's tensors, by their names without the prefix."""
        return without_prefix(self.weights, DETECTOR_PREFIX)

    @property
    def layout(self) -> Layout | None:
        """The layout of the MViT; None if there is no MViT."""
        return Layout.of(self.backbone) if backbone_prefix(self.weights) is not None else None

    @property
    def is_of_clips(self) -> bool:
        """Whether the MViT's filters have frames."""
        patches = self.weights.get(f"{DETECTOR_PREFIX}{PATCHES}")
        return patches is not None and patches.dim() == 5

    def check_plain(self, names: Iterable[str]) -> None:
        """Checks that tensors, by their names in ``weights``, hold numbers that can be copied.

        Raises:
            UserError: a tensor is sparse, quantised, complex or on the meta device.
        """
        for name in names:
            value = self.weights[name]
            kinds = {
                "sparse": value.layout != torch.strided,
                "quantised": value.is_quantized,
                "complex": value.is_complex(),
                "on the meta device, without values": value.is_meta,
            }
            if found := [kind for kind, is_so in kinds.items() if is_so]:
                raise UserError(
                    f"checkpoint {self.source!r}: {self.own_names[name]} is {found[0]}; expected "
                    f"a dense tensor of real numbers"
                )


Source = str | Path | Mapping[str, Tensor] | nn.Module | Checkpoint


def read_source(source: Source) -> Checkpoint:
    """Reads weights and finds out which network they belong to.

    Args:
        source: a name of released weights, a path, a URL, ``detectron2://…``, ``timm://NAME``, a
            mapping from names to tensors, or a module; what has been read already is returned.

    Raises:
        UserError: the weights cannot be read, or belong neither to an MViT nor to a detector.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, nn.Module):
        title, source = type(source).__name__, source.state_dict()
    else:
        title = "weights given" if isinstance(source, Mapping) else str(source)
    if isinstance(source, Mapping):
        others = other_entries(source)
    else:
        source, others = read_checkpoint(_local_path(title))
    try:
        return replace(_identify(title, unwrapped(select_weights(source))), others=others)
    except UserError as error:
        raise UserError(f"checkpoint {title!r}: {error}") from error


def _local_path(source: str) -> str:
    check_source(source)
    path = fetch(source, PathManager.get_local_path)
    if "://" in path:
        raise UserError(
            f"checkpoint {source!r} is no address that is known: use a path, a URL, "
            f"detectron2://… (if Detectron2 is installed) or timm://NAME"
        )
    return path


def check_source(source: str) -> None:
    """Checks, without a network, that a source may be there.

    Raises:
        UserError: it is no address, and there is neither a file nor weights of this name.
    """
    if "://" in source or Path(source).is_file() or find_released(source):
        return
    names = released_weights()
    if source.isidentifier():
        suggestion = did_you_mean(source, names) or "; mvitv2-det models lists them"
        raise UserError(f"there is neither a file nor released weights {source!r}{suggestion}")
    name = Path(source).stem.lower()  # as released files are called
    suggestion = f"; did you mean {name!r}?" if name in names else ""
    raise UserError(f"there is no checkpoint file {source!r}{suggestion}")


def _identify(source: str, weights: dict[str, Tensor]) -> Checkpoint:
    prefix = backbone_prefix(weights)
    if prefix == "" and not has_output_norms(weights):
        return _classification(source, weights, MVIT)
    if prefix is not None:
        names = {name: detector_name(name, prefix) for name in weights}
    else:
        for format in CLASSIFICATION_FORMATS:
            if format.fits(weights):
                return _classification(source, weights, format)
        if not any(name.startswith(_DETECTOR_PARTS) for name in weights):
            raise UserError(
                f"it holds neither an MViT nor a detector; its first tensors are "
                f"{', '.join(list(weights)[:3])}"
            )
        names = {name: name for name in weights}
    return Checkpoint(
        source,
        "detectron2",
        {names[name]: value for name, value in weights.items()},
        own_names={ours: name for name, ours in names.items()},
    )


def _classification(source: str, weights: dict[str, Tensor], format: Format) -> Checkpoint:
    """Renames the weights of a classification network, of images or clips.

    PySlowFast trains image networks with filters of one frame too; these lose that axis.
    """
    is_of_clips = any(
        name.endswith("rel_pos_t") or (value.dim() == 5 and value.shape[2] > 1)
        for name, value in weights.items()
    )
    if is_of_clips:
        format = OF_CLIPS.get(format, format)
    else:
        weights = {n: v.squeeze(2) if v.dim() == 5 else v for n, v in weights.items()}
    renamed, unknown = from_source(weights, format)
    named = [*renamed.items(), *unknown.items()]
    # Both groups keep the order that they have in the source.
    order = [name for name in weights if name not in unknown] + list(unknown)
    return Checkpoint(
        source,
        format.name,
        {f"{DETECTOR_PREFIX}{name}": value for name, value in named},
        own_names={
            f"{DETECTOR_PREFIX}{ours}": theirs
            for (ours, _), theirs in zip(named, order, strict=True)
        },
    )


def has_output_norms(names: Mapping[str, Tensor]) -> bool:
    """Tells whether a backbone's names include the norms that detection adds after each stage."""
    return any(is_output_norm(name) for name in names)


def is_output_norm(name: str) -> bool:
    """Tells whether a backbone's name is ``scaleN_norm.weight`` or ``scaleN_norm.bias``."""
    module, _, _ = name.partition(".")
    return module.startswith("scale") and module.endswith("_norm")


def detector_name(name: str, prefix: str) -> str:
    """Turns a name in a model into the name in a detector.

    Args:
        name: a name in the model.
        prefix: prefix of the backbone's names in the model.
    """
    if name.startswith(prefix):
        return DETECTOR_PREFIX + name[len(prefix) :]
    return f"backbone.{name}" if prefix == "bottom_up." else name


class TimmHandler(PathHandler):
    """Handler of ``timm://NAME``, the pre-trained weights that ``timm.create_model`` finds.

    timm downloads the weights. A copy is kept as a ``.safetensors`` file in iopath's cache.
    """

    PREFIX = "timm://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
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
                except Exception as error:  # timm's hub raises exceptions of many types.
                    reason = " ".join(str(error).split())[:200] or type(error).__name__
                    raise UserError(f"{path!r}: timm cannot get it: {reason}") from error
                write_weights(model.state_dict(), file, key=None)
        return os.fspath(file)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        return open(self._get_local_path(path), mode, buffering)


PathManager.register_handler(TimmHandler())
