"""Finding out which network a classifier's weights belong to, where nothing but weights is given.

Released files, those of timm and checkpoints of other projects do not say what they are; the shapes
of their tensors do, but for the preprocessing and the names of the classes.
"""

from timm.data import ImageNetInfo

from ..errors import UserError
from ..weights.key_maps import ABSOLUTE_POSITIONS, CLASS_TOKEN, CLASSIFIER
from ..weights.sources import Checkpoint
from .description import Description, Input

_IMAGENET_1K = 1000
_PATCH_STRIDE = 4


def describe_weights(checkpoint: Checkpoint, num_classes: int | None = None) -> Description:
    """Describes the MViTv2 that the weights of an image classifier are of.

    Classes are those of ImageNet-1K, in the words of timm, if there are 1,000, and else numbered.
    The preprocessing is the paper's centre crop, with the size of the relative position tables.

    Args:
        checkpoint: the weights.
        num_classes: outputs to keep, the first of the classifier's; by default all.

    Raises:
        UserError: there is no classifier among the weights, they are of clips, or they have fewer
            outputs.
    """
    weights, layout = checkpoint.backbone, checkpoint.layout
    projection = weights.get(CLASSIFIER[0])
    if layout is None or projection is None:
        raise UserError(
            f"checkpoint {checkpoint.source!r} has no classifier of an MViT: expected weights of a "
            f"classification network"
        )
    if checkpoint.is_of_clips:
        raise UserError(f"checkpoint {checkpoint.source!r} is of clips: expected one of images")
    outputs = len(projection)
    count = outputs if num_classes is None else num_classes
    if not 1 <= count <= outputs:
        raise UserError(
            f"checkpoint {checkpoint.source!r} has {outputs} outputs: num_classes must be in 1 .. "
            f"{outputs}, got {count}"
        )
    # Pooling filters are of one head's channels.
    pool, table = weights.get("blocks.0.attn.pool_k.weight"), weights.get("blocks.0.attn.rel_pos_h")
    if pool is None:
        raise UserError(f"checkpoint {checkpoint.source!r} pools no keys: expected an MViTv2")
    size = 224 if table is None else (len(table) + 1) // 2 * _PATCH_STRIDE
    arguments = {
        "variant": {
            "embed_dim": layout.embed_dim,
            "blocks": layout.blocks,
            "num_heads": layout.embed_dim // len(pool),
            "drop_path_rate": 0.0,
        },
        "class_token": CLASS_TOKEN in weights,
        "image_size": size,
        "expand_in_attention": layout.expand_in_attention,
        "use_abs_pos": ABSOLUTE_POSITIONS in weights,
        "use_rel_pos": table is not None,
    }
    return Description("image", arguments, _class_names(count), Input(size=size))


def _class_names(count: int) -> tuple[str, ...]:
    if count != _IMAGENET_1K:
        return tuple(f"class {index}" for index in range(count))
    imagenet = ImageNetInfo()
    return tuple(imagenet.index_to_description(index) for index in range(count))
