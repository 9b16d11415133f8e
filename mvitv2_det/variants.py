"""The five sizes of MViTv2 (Table 1 of the paper) and what MViTv1 does otherwise: the single
source of their numbers.

Drop path rates are those of the public detection recipe (the released Detectron2
configs), which trains T and S with 0.2 where the paper's appendix B.3 says 0.1 and 0.3.
"""

from dataclasses import dataclass
from itertools import accumulate

NUM_STAGES = 4


@dataclass(frozen=True)
class Variant:
    """One row of Table 1.

    Attributes:
        embed_dim: channels of the first stage; each later stage doubles them.
        blocks: number of blocks in each of the four stages.
        num_heads: attention heads of the first stage; each later stage doubles them.
        drop_path_rate: stochastic depth of the last block in detection training.
    """

    embed_dim: int
    blocks: tuple[int, int, int, int]
    num_heads: int
    drop_path_rate: float

    @property
    def depth(self) -> int:
        """Number of blocks in all stages."""
        return sum(self.blocks)

    @property
    def last_block_indexes(self) -> tuple[int, ...]:
        """Index of the last block of each stage."""
        return tuple(end - 1 for end in accumulate(self.blocks))

    def backbone_arguments(self) -> dict:
        """The keywords of :class:`mvitv2_det.MViT` that make this size."""
        return {
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "last_block_indexes": self.last_block_indexes,
            "drop_path_rate": self.drop_path_rate,
        }


VARIANTS = {
    "T": Variant(embed_dim=96, blocks=(1, 2, 5, 2), num_heads=1, drop_path_rate=0.2),
    "S": Variant(embed_dim=96, blocks=(1, 2, 11, 2), num_heads=1, drop_path_rate=0.2),
    "B": Variant(embed_dim=96, blocks=(2, 3, 16, 3), num_heads=1, drop_path_rate=0.4),
    "L": Variant(embed_dim=144, blocks=(2, 6, 36, 4), num_heads=2, drop_path_rate=0.5),
    "H": Variant(embed_dim=192, blocks=(4, 8, 60, 8), num_heads=3, drop_path_rate=0.6),
}

# What makes an MViTv1 (Fan et al. 2021) of a size, for detection combined with Hwin (footnote 5):
# absolute positions, no residual pooling, queries pooled only where a stage starts, and channels
# that double in the MLP that ends a stage. Its K/V strides are those of its own paper, the same
# in all blocks of a stage. Its class token has no part in detection.
MVITV1_ARGUMENTS = {
    "expand_in_attention": False,
    "residual_pooling": False,
    "full_q_pooling": False,
    "use_abs_pos": True,
    "use_rel_pos": False,
    "global_kv_stride_factor": 1,
}
