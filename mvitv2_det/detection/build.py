"""The yacs side: ``cfg.MODEL.MVIT`` and the builders that Detectron2's registry finds by name."""

from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from ..backbone import MViT
from ..variants import VARIANTS
from .fpn import MViTFPN

_SIZE_KEYS = ("EMBED_DIM", "DEPTH", "NUM_HEADS", "LAST_BLOCK_INDEXES", "DROP_PATH_RATE")


def add_mvitv2_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.MVIT`` to a yacs config: the keywords of :class:`mvitv2_det.MViT`.

    ``VARIANT`` sets the size. ``EMBED_DIM``, ``DEPTH``, ``NUM_HEADS``, ``LAST_BLOCK_INDEXES`` and
    ``DROP_PATH_RATE`` are the variant's where they are None. ``MODEL.BACKBONE.FREEZE_AT`` freezes
    stages as in Detectron2's ResNets; its default there is 2.
    """
    cfg.MODEL.MVIT = CfgNode(
        {
            "VARIANT": "T",
            **dict.fromkeys(_SIZE_KEYS),
            "IMG_SIZE": 224,
            "QKV_POOL_KERNEL": (3, 3),
            "ADAPTIVE_KV_STRIDE": 4,
            "ADAPTIVE_WINDOW_SIZE": 56,
            "GLOBAL_KV_STRIDE_FACTOR": 2,
            "WINDOW_LAYOUT": "hybrid",
            "GLOBAL_BLOCK_INDEXES": None,
            "MASK_WINDOW_PADDING": False,
            "FULL_Q_POOLING": True,
            "RESIDUAL_POOLING": True,
            "EXPAND_IN_ATTENTION": True,
            "MLP_RATIO": 4.0,
            "QKV_BIAS": True,
            "NORM_EPS": 1e-6,
            "USE_ABS_POS": False,
            "USE_REL_POS": True,
            "REL_POS_KIND": "decomposed",
            "REL_POS_TERMS": ("q",),
            "REL_POS_ZERO_INIT": True,
            "PRETRAIN_IMG_SIZE": 224,
            "PRETRAIN_USE_CLS_TOKEN": True,
            "USE_ACT_CHECKPOINT": False,
            "OUT_FEATURES": ("scale2", "scale3", "scale4", "scale5"),
        }
    )


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
