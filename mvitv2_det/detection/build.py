"""The yacs side: ``cfg.MODEL.MVIT`` and the builders that Detectron2's registry finds by name."""

import inspect
from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from ..backbone.mvit import MViT
from ..variants import VARIANTS
from .fpn import MViTFPN

# Keywords of MViT that the variant sets where they are None.
_SIZES = ("embed_dim", "depth", "num_heads", "last_block_indexes", "drop_path_rate")
# Keywords of MViT that are no keys of ours: Detectron2 has them elsewhere, or they are no numbers.
_ELSEWHERE = ("in_chans", "freeze_at", "norm_layer", "act_layer")


def add_mvitv2_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.MVIT`` to a yacs config: the keywords of :class:`mvitv2_det.MViT`, in capitals.

    ``VARIANT`` sets the size. ``EMBED_DIM``, ``DEPTH``, ``NUM_HEADS``, ``LAST_BLOCK_INDEXES`` and
    ``DROP_PATH_RATE`` are the variant's where they are None. ``NORM_EPS`` is that of all norms,
    1e-6 as in the published models. ``MODEL.BACKBONE.FREEZE_AT`` freezes stages as in
    Detectron2's ResNets; its default there is 2.
    """
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(MViT).parameters.items()
        if name not in _ELSEWHERE
    }
    keywords |= dict.fromkeys(_SIZES)
    node = {name.upper(): value for name, value in keywords.items()}
    cfg.MODEL.MVIT = CfgNode({"VARIANT": "T", "NORM_EPS": 1e-6, **node})


@BACKBONE_REGISTRY.register()
def build_mvitv2_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MViT:
    """An MViT from ``cfg.MODEL.MVIT``.

    Raises:
        ValueError: ``VARIANT`` is unknown, or sizes do not fit each other.
    """
    options = {key: value for key, value in cfg.MODEL.MVIT.items() if value is not None}
    variant = options.pop("VARIANT")
    if variant not in VARIANTS:
        raise ValueError(
            f"MODEL.MVIT.VARIANT must be one of {', '.join(VARIANTS)}, got {variant!r}"
        )
    arguments = VARIANTS[variant].backbone_arguments()
    arguments["norm_layer"] = partial(nn.LayerNorm, eps=options.pop("NORM_EPS"))
    arguments.update({key.lower(): value for key, value in options.items()})
    return MViT(in_chans=input_shape.channels, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT, **arguments)


@BACKBONE_REGISTRY.register()
def build_mvitv2_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MViTFPN:
    """The MViT of :func:`build_mvitv2_backbone` under an FPN from ``cfg.MODEL.FPN``."""
    return MViTFPN(
        bottom_up=build_mvitv2_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES or cfg.MODEL.MVIT.OUT_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
