"""Finding out which network a classifier's weights belong to, where nothing but weights is given.

Released files, those of timm and checkpoints of other projects do not say what they are; the shapes
of their tensors do, but for the preprocessing and the names of the classes.
"""

from typing import Any

from timm.data import ImageNetInfo
from torch import Tensor
from torchvision.models.video import MViT_V2_S_Weights

from ..errors import UserError
from ..weights.key_maps import ABSOLUTE_POSITIONS, CLASS_TOKEN, CLASSIFIER
from ..weights.sources import Checkpoint
from .description import ClipInput, Description, Input

_IMAGENET_1K, _KINETICS_400, _SOMETHING_SOMETHING = 1000, 400, 174
_PATCH_STRIDE, _PATCH_STRIDE_IN_TIME = 4, 2
# Of the public configs of PySlowFast, whose networks these are.
_CLIP_COLOURS: dict[str, Any] = {"mean": (0.45,) * 3, "std": (0.225,) * 3}


def describe_weights(checkpoint: Checkpoint, num_classes: int | None = None) -> Description:
    """Describes the MViTv2 that the weights of a classifier are of.

    Classes are those of ImageNet-1K, in the words of timm, if there are 1,000 of images, those of
    Kinetics-400, in the words of torchvision, if there are 400 of clips, and else numbered. The
    preprocessing is the paper's, with the size and number of frames of the relative position
    tables: the centre crop of images; 5 clips of 16 × 4, or of a rate of 3 for more frames; the
    segments and 3 crops of Something-Something for its 174 classes.

    Args:
        checkpoint: the weights.
        num_classes: outputs to keep, the first of the classifier's; by default all.

    Raises:
        UserError: there is no classifier among the weights, or they have fewer outputs.
    """
    weights, layout = checkpoint.backbone, checkpoint.layout
    projection = weights.get(CLASSIFIER[0])
    if layout is None or projection is None:
        raise UserError(
            f"checkpoint {checkpoint.source!r} has no classifier of an MViT: expected weights of a "
            f"classification network"
        )
    outputs = len(projection)
    count = outputs if num_classes is None else num_classes
    if not 1 <= count <= outputs:
        raise UserError(
            f"checkpoint {checkpoint.source!r} has {outputs} outputs: num_classes must be in 1 .. "
            f"{outputs}, got {count}"
        )
    # Pooling filters are of one head's channels.
    pool = weights.get("blocks.0.attn.pool_k.weight")
    if pool is None:
        raise UserError(f"checkpoint {checkpoint.source!r} pools no keys: expected an MViTv2")
    side = _positions(weights, "h")
    size = 224 if side is None else side * _PATCH_STRIDE
    arguments: dict[str, Any] = {
        "variant": {
            "embed_dim": layout.embed_dim,
            "blocks": layout.blocks,
            "num_heads": layout.embed_dim // len(pool),
            "drop_path_rate": 0.0,
        },
        "class_token": CLASS_TOKEN in weights,
        "image_size": size,
        "expand_in_attention": layout.expand_in_attention,
    }
    if not checkpoint.is_of_clips:
        arguments |= {
            "use_abs_pos": ABSOLUTE_POSITIONS in weights,
            "use_rel_pos": side is not None,
        }
        return Description("image", arguments, _class_names(count, _IMAGENET_1K), Input(size=size))
    times = _positions(weights, "t")
    if times is None:
        raise UserError(
            f"checkpoint {checkpoint.source!r} has no relative positions in time: expected an "
            f"MViTv2 of clips"
        )
    frames = times * _PATCH_STRIDE_IN_TIME
    views: dict[str, Any] = {"rate": 4 if frames <= 16 else 3}
    if outputs == _SOMETHING_SOMETHING:
        views = {"sampling": "segments", "clips": 1, "crops": 3}
    return Description(
        "video",
        arguments | {"frames": frames},
        _class_names(count, _KINETICS_400),
        ClipInput(size=size, frames=frames, **views, **_CLIP_COLOURS),
    )


def _positions(weights: dict[str, Tensor], axis: str) -> int | None:
    """Places along an axis that the first block's table is of; None without a table."""
    table = weights.get(f"blocks.0.attn.rel_pos_{axis}")
    return None if table is None else (len(table) + 1) // 2


def _class_names(count: int, known: int) -> tuple[str, ...]:
    if count != known:
        return tuple(f"class {index}" for index in range(count))
    if known == _KINETICS_400:
        return tuple(MViT_V2_S_Weights.KINETICS400_V1.meta["categories"])
    imagenet = ImageNetInfo()
    return tuple(imagenet.index_to_description(index) for index in range(count))
