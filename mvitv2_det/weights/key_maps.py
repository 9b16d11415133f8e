"""Tables of tensor names, one for each source of MViTv2 weights, usable in both directions.

A table lists every name of a network of a given layout, so that no pattern has to guess what a
name means. It maps the names of the source to the names in :mod:`mvitv2_det.weights.layout`.

Sources read for this: ``mvit/models/mvit_model.py`` and ``attention.py`` of facebookresearch/mvit,
``slowfast/models/video_model_builder.py`` of facebookresearch/SlowFast, ``models/mvitv2.py`` of
timm, ``models/video/mvit.py`` of torchvision, ``modeling/backbone/mvit.py`` of Detectron2,
``models/backbones/mvit.py`` of mmpretrain and of mmaction2, with mmpretrain's
``tools/model_converters/mvitv2_to_mmcls.py`` and mmaction2's ``models/heads/mvit_head.py``.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import UserError
from .layout import PATCHES, Layout

# Prefix of the backbone's names in a detector of Detectron2 with an FPN.
DETECTOR_PREFIX = "backbone.bottom_up."
# Prefixes that the backbone's names may have in a checkpoint.
PREFIXES = ("", DETECTOR_PREFIX, "bottom_up.", "backbone.")
# Prefixes that torch's wrappers add to every name.
WRAPPERS = ("module.", "_orig_mod.")

FINAL_NORM = ("norm.weight", "norm.bias")
CLASSIFIER = ("head.projection.weight", "head.projection.bias")
CLASS_TOKEN = "cls_token"
ABSOLUTE_POSITIONS = "pos_embed"
# The positions of clips, a sum of two (PySlowFast's SEP_POS_EMBED); the class token has its own.
SPATIAL_POSITIONS = "pos_embed_spatial"
TEMPORAL_POSITIONS = "pos_embed_temporal"
CLASS_POSITION = "pos_embed_class"

_STEM = (PATCHES, "patch_embed.proj.bias", CLASS_TOKEN, ABSOLUTE_POSITIONS)
_BLOCK_MODULES = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "proj")
_POOLING = tuple(f"attn.{part}_{x}" for part in ("pool", "norm") for x in "qkv")
_BLOCK = (
    *(f"{module}.{leaf}" for module in (*_BLOCK_MODULES, *_POOLING) for leaf in ("weight", "bias")),
    "attn.rel_pos_h",
    "attn.rel_pos_w",
)
_TEMPORAL = "attn.rel_pos_t"

# Modules of a block that torchvision names differently.
_TORCHVISION_BLOCK = {
    "attn.project.0": "attn.proj",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
    "project": "proj",
} | {
    f"attn.pool_{x}.{part}": f"attn.{module}_{x}"
    for x in "qkv"
    for part, module in (("pool", "pool"), ("norm_act.0", "norm"))
}


# Absolute positions and class token of torchvision, which keeps them without their axes of one.
_TORCHVISION_POSITIONS = {
    "pos_encoding.class_token": CLASS_TOKEN,
    "pos_encoding.class_pos": CLASS_POSITION,
    "pos_encoding.spatial_pos": SPATIAL_POSITIONS,
    "pos_encoding.temporal_pos": TEMPORAL_POSITIONS,
}


def mvit_names(layout: Layout) -> dict[str, str]:
    """Builds the table of facebookresearch/mvit, whose names are used here too."""
    names = [*_STEM, *FINAL_NORM, *CLASSIFIER]
    for index in range(sum(layout.blocks)):
        names += [f"blocks.{index}.{name}" for name in _BLOCK]
    return {name: name for name in names}


def pyslowfast_names(layout: Layout) -> dict[str, str]:
    """Builds the table of PySlowFast: those of images, and what clips have beyond."""
    names = [SPATIAL_POSITIONS, TEMPORAL_POSITIONS, CLASS_POSITION]
    names += [f"blocks.{index}.{_TEMPORAL}" for index in range(sum(layout.blocks))]
    return mvit_names(layout) | {name: name for name in names}


def mmpretrain_names(layout: Layout) -> dict[str, str]:
    """Builds the table of mmpretrain, which calls the last norm after its stage."""
    return _mmlab_names(mvit_names(layout), head="head.fc")


def mmaction2_names(layout: Layout) -> dict[str, str]:
    """Builds the table of mmaction2."""
    return _mmlab_names(pyslowfast_names(layout), head="cls_head.fc_cls")


def _mmlab_names(names: Iterable[str], head: str) -> dict[str, str]:
    table = {}
    for name in names:
        if name in CLASSIFIER:
            table[name.replace("head.projection", head)] = name
        elif name in FINAL_NORM:
            table[name.replace("norm", "backbone.norm3")] = name
        else:
            table[f"backbone.{name.replace('patch_embed.proj', 'patch_embed.projection')}"] = name
    return table


def timm_names(layout: Layout) -> dict[str, str]:
    """Builds the table of timm, where blocks are numbered within their stage.

    The name of a skip connection's projection says whether it bypasses the attention or the MLP.
    """
    projection = "shortcut_proj_attn" if layout.expand_in_attention else "shortcut_proj_mlp"
    table = {name: name for name in (*_STEM, *FINAL_NORM)}
    table |= {name.replace("projection", "fc"): name for name in CLASSIFIER}
    index = 0
    for stage, blocks in enumerate(layout.blocks):
        for block in range(blocks):
            for name in _BLOCK:
                module, _, leaf = name.rpartition(".")
                theirs = f"{projection}.{leaf}" if module == "proj" else name
                table[f"stages.{stage}.blocks.{block}.{theirs}"] = f"blocks.{index}.{name}"
            index += 1
    return table


def torchvision_names(layout: Layout) -> dict[str, str]:
    """Builds the table of torchvision's video networks."""
    theirs_of = {ours: theirs for theirs, ours in _TORCHVISION_BLOCK.items()}
    table = {f"conv_proj.{leaf}": f"patch_embed.proj.{leaf}" for leaf in ("weight", "bias")}
    table |= _TORCHVISION_POSITIONS
    table |= {name: name for name in FINAL_NORM}
    table |= {name.replace("projection", "1"): name for name in CLASSIFIER}
    for index in range(sum(layout.blocks)):
        for name in (*_BLOCK, _TEMPORAL):
            module, _, leaf = name.rpartition(".")
            theirs = f"{theirs_of[module]}.{leaf}" if module in theirs_of else name
            table[f"blocks.{index}.{theirs}"] = f"blocks.{index}.{name}"
    return table


@dataclass(frozen=True)
class Format:
    """The tensor names of one source of weights.

    Attributes:
        name: short name, for reports and the command line.
        names: builds the table from the names of the format to those used here, for a layout.
        patches: name of the patch embedding's weight; it identifies the format.
        first_block: name of the first block's first norm; it identifies the format too.
    """

    name: str
    names: Callable[[Layout], dict[str, str]]
    patches: str
    first_block: str = "blocks.0.norm1.weight"

    def fits(self, names: Iterable[str]) -> bool:
        """Tells whether these are names of this format."""
        return {self.patches, self.first_block} <= set(names)


MVIT = Format("mvit", mvit_names, PATCHES)
PYSLOWFAST = Format("pyslowfast", pyslowfast_names, PATCHES)
TIMM = Format("timm", timm_names, PATCHES, "stages.0.blocks.0.norm1.weight")
TORCHVISION = Format("torchvision", torchvision_names, "conv_proj.weight")
_MMLAB = ("backbone.patch_embed.projection.weight", "backbone.blocks.0.norm1.weight")
MMPRETRAIN = Format("mmpretrain", mmpretrain_names, *_MMLAB)
MMACTION2 = Format("mmaction2", mmaction2_names, *_MMLAB)
CLASSIFICATION_FORMATS = (MVIT, TIMM, TORCHVISION, MMPRETRAIN)
# The format of clips where its names begin like those of a format of images.
OF_CLIPS = {MVIT: PYSLOWFAST, MMPRETRAIN: MMACTION2}


def unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Removes the prefixes that wrappers have added to every name."""
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in weights):
            return unwrapped({name[len(wrapper) :]: value for name, value in weights.items()})
    return dict(weights)


def backbone_prefix(names: Iterable[str]) -> str | None:
    """Finds which of ``PREFIXES`` the backbone's names have; None if there is no MViT."""
    names = set(names)
    for prefix in PREFIXES:
        if {f"{prefix}{PATCHES}", f"{prefix}{MVIT.first_block}"} <= names:
            return prefix
    return None


def without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Selects the tensors whose names have a prefix, and removes it from their names."""
    return {
        name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)
    }


def from_source(
    weights: Mapping[str, Tensor], source: Format
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Renames the weights of a classification network to the names used here.

    Returns:
        The renamed tensors; and the tensors that the source's table does not list, under the
        names that they had.

    Raises:
        UserError: see :func:`source_layout`.
    """
    table = source.names(source_layout(weights, source))
    renamed = {table[name]: value for name, value in weights.items() if name in table}
    if source is TORCHVISION:
        for name in _TORCHVISION_POSITIONS.values() & renamed.keys():
            renamed[name] = renamed[name].reshape(1, -1, renamed[name].shape[-1])
    unknown = {name: value for name, value in weights.items() if name not in table}
    return renamed, unknown


def to_target(
    weights: Mapping[str, Tensor], target: Format
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Renames the weights of a backbone to the names of a format; reverses :func:`from_source`."""
    table = target.names(Layout.of(weights))
    if target is TORCHVISION:
        weights = dict(weights)
        for name in (CLASS_TOKEN, CLASS_POSITION):
            if name in weights:
                weights[name] = weights[name].flatten()
        for name in (SPATIAL_POSITIONS, TEMPORAL_POSITIONS):
            if name in weights:
                weights[name] = weights[name][0]
    theirs = {ours: name for name, ours in table.items()}
    renamed = {theirs[name]: value for name, value in weights.items() if name in theirs}
    unknown = {name: value for name, value in weights.items() if name not in theirs}
    return renamed, unknown


def source_layout(weights: Mapping[str, Tensor], source: Format) -> Layout:
    """Finds the layout of a source's weights.

    Raises:
        UserError: the numbers of the blocks have a gap, or q, k and v have separate projections.
    """
    if "blocks.0.attn.q.weight" in weights:
        raise UserError(
            "it has separate projections of q, k and v (MVIT.SEPARATE_QKV of PySlowFast), which "
            "no network here has"
        )
    if source is TIMM:
        layout = _timm_layout(weights)
    else:
        plain = {name.removeprefix("backbone."): value for name, value in weights.items()}
        layout = Layout.of(
            {
                re.sub(r"^(blocks\.\d+)\.project\.", r"\1.proj.", name): value
                for name, value in plain.items()
            }
            | {PATCHES: weights[source.patches]}
        )
    blocks = {name.partition(".norm1.")[0] for name in weights if name.endswith(".norm1.weight")}
    if len(blocks) != sum(layout.blocks):
        raise UserError(
            f"it has {len(blocks)} blocks, but only {sum(layout.blocks)} are numbered without a gap"
        )
    return layout


def _timm_layout(weights: Mapping[str, Tensor]) -> Layout:
    blocks: list[int] = []
    while f"stages.{len(blocks)}.blocks.0.norm1.weight" in weights:
        stage, count = len(blocks), 0
        while f"stages.{stage}.blocks.{count}.norm1.weight" in weights:
            count += 1
        blocks.append(count)
    in_mlp = any(".shortcut_proj_mlp." in name for name in weights)
    return Layout(weights[PATCHES].shape[0], tuple(blocks), not in_mlp)
