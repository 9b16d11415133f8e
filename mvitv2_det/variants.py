"""The five sizes of MViTv2 (Table 1 of the paper), and the options that make an MViTv1.

This module is the only place that has these numbers. The drop-path rates are those of the public
detection recipe (the released Detectron2 configs), which uses 0.2 for T and S, whereas appendix
B.3 of the paper says 0.1 and 0.3.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

NUM_STAGES = 4


@dataclass(frozen=True)
class Variant:
    """One row of Table 1.

    Attributes:
        embed_dim: channels of the first stage; every further stage doubles them.
        blocks: number of blocks in each of the four stages.
        num_heads: attention heads of the first stage; every further stage doubles them.
        drop_path_rate: drop-path rate of the last block in detection training.
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

    def backbone_arguments(self) -> dict[str, Any]:
        """Returns the arguments of :class:`mvitv2_det.MViT` that make this size."""
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

# Arguments that make a size an MViTv1 (Fan et al. 2021), which the paper combines with Hwin for
# detection (footnote 5): absolute positions, no residual pooling, query pooling only where a stage
# starts, and channels that double in the last MLP of a stage. All blocks of a stage have the same
# K/V stride, as in the paper of MViTv1. Detection does not use its class token.
MVITV1_ARGUMENTS = {
    "expand_in_attention": False,
    "residual_pooling": False,
    "full_q_pooling": False,
    "use_abs_pos": True,
    "use_rel_pos": False,
    "global_kv_stride_factor": 1,
}
