"""One transformer block, Fig. 2.

Axes: B images, H × W tokens, C channels.
"""

from collections.abc import Callable

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from ..attention.multiscale import MultiScaleAttention
from ..attention.pooling import pool_map, skip_pool
from .schedule import BlockSpec


class MultiScaleBlock(nn.Module):
    """Normalise, attend and add; normalise, MLP and add.

    Where the attention strides its queries, the skip connection around it is max-pooled; where
    attention or MLP changes the width, the skip connection around it is a projection of the
    normalised input (appendix B.1). Parameter names are those of
    ``detectron2.modeling.backbone.mvit.MultiScaleBlock``.

    Args:
        spec: the numbers of this block.
        norm_layer: makes a normalisation from its channels.
        act_layer: makes the activation of the MLP.
    """

    def __init__(
        self,
        spec: BlockSpec,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.spec = spec
        dim, dim_attention = spec.attention.dim, spec.attention.dim_out
        self.norm1 = norm_layer(dim)
        self.attn = MultiScaleAttention(spec.attention, norm_layer)
        self.drop_path = DropPath(spec.drop_path) if spec.drop_path > 0 else nn.Identity()
        self.norm2 = norm_layer(dim_attention)
        self.mlp = Mlp(
            in_features=dim_attention,
            hidden_features=int(dim_attention * spec.mlp_ratio),
            out_features=spec.dim_out,
            act_layer=act_layer,  # type: ignore[arg-type]  # timm calls it, a class or not
        )
        self.widens_in_attention = dim_attention != dim
        self.widens_in_mlp = spec.dim_out != dim_attention
        # Attention and MLP never both widen in one block, so one projection serves either.
        if self.widens_in_attention or self.widens_in_mlp:
            self.proj = nn.Linear(dim, spec.dim_out)
        self.pool_skip = skip_pool(spec.attention.stride_q)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C_in) to (B, H / stride_q, W / stride_q, C_out), sizes rounded up."""
        normed = self.norm1(x)
        skip = self.proj(normed) if self.widens_in_attention else x
        x = pool_map(skip, self.pool_skip) + self.drop_path(self.attn(normed))
        normed = self.norm2(x)
        skip = self.proj(normed) if self.widens_in_mlp else x
        return skip + self.drop_path(self.mlp(normed))
