"""The layout of a network (its width and blocks), found from the names and shapes of its weights.

Names are those of facebookresearch/mvit, which this project's and Detectron2's ``MViT`` share:
``blocks.N.attn.qkv.weight`` and so on, where N counts the blocks of all stages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..variants import VARIANTS

PATCHES = "patch_embed.proj.weight"


@dataclass(frozen=True)
class Layout:
    """The size of an MViTv2 network.

    Attributes:
        embed_dim: channels of the first stage.
        blocks: number of blocks in each stage.
        expand_in_attention: whether channels double in the first attention of a stage (appendix
            B.1) or in the last MLP of the stage before.
    """

    embed_dim: int
    blocks: tuple[int, ...]
    expand_in_attention: bool

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "Layout":
        """Finds the layout of a backbone's weights.

        A stage starts where the skip connection of a block has a projection.
        """
        depth = 0
        while f"blocks.{depth}.norm1.weight" in weights:
            depth += 1
        projected = [index for index in range(depth) if f"blocks.{index}.proj.weight" in weights]
        in_attention = all(_widens_in_attention(weights, index) for index in projected)
        first = [index if in_attention else index + 1 for index in projected]
        bounds = [0, *(index for index in first if 0 < index < depth), depth]
        blocks = tuple(end - start for start, end in pairwise(bounds))
        return cls(weights[PATCHES].shape[0], blocks, in_attention)

    def __str__(self) -> str:
        names = [
            name
            for name, variant in VARIANTS.items()
            if (variant.embed_dim, variant.blocks) == (self.embed_dim, self.blocks)
        ]
        known = f"MViTv2-{names[0]}" if names else "an MViT"
        return f"{known} of {'-'.join(map(str, self.blocks))} blocks and {self.embed_dim} channels"


def _widens_in_attention(weights: Mapping[str, Tensor], index: int) -> bool:
    wide, _ = weights[f"blocks.{index}.proj.weight"].shape
    qkv = weights.get(f"blocks.{index}.attn.qkv.weight")
    return qkv is not None and qkv.shape[0] == 3 * wide
