"""One transformer block, Fig. 2.

Axes: B images or clips; *axes, the n axes of a token map, H × W or T × H × W; C channels. A class
token travels beside the map, (B, 1, C).
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

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Computes the block.

        Args:
            x: (B, *axes, C_in).
            token: a class token, (B, 1, C_in), or None.

        Returns:
            (B, *axes / stride_q, C_out), sizes rounded up; with a class token also (B, 1, C_out).
        """
        if token is not None:
            return self._forward_with_token(x, token)
        normed = self.norm1(x)
        skip = self.proj(normed) if self.widens_in_attention else x
        x = pool_map(skip, self.pool_skip) + self.drop_path(self.attn(normed))
        normed = self.norm2(x)
        skip = self.proj(normed) if self.widens_in_mlp else x
        return skip + self.drop_path(self.mlp(normed))

    def _forward_with_token(self, x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """The same steps for both; the skip connection of the token is not pooled."""
        normed, normed_token = self.norm1(x), self.norm1(token)
        skip, skip_token = (
            (self.proj(normed), self.proj(normed_token)) if self.widens_in_attention else (x, token)
        )
        attended, attended_token = self.attn(normed, normed_token)
        # A path is dropped for all tokens of an image, its class token among them.
        path = self.drop_path(x.new_ones(x.shape[0], 1, 1))
        x = pool_map(skip, self.pool_skip) + _scaled(attended, path)
        token = skip_token + _scaled(attended_token, path)
        path = self.drop_path(x.new_ones(x.shape[0], 1, 1))
        return self._add_mlp(x, path), self._add_mlp(token, path)

    def _add_mlp(self, x: Tensor, path: Tensor) -> Tensor:
        normed = self.norm2(x)
        skip = self.proj(normed) if self.widens_in_mlp else x
        return skip + _scaled(self.mlp(normed), path)


def _scaled(x: Tensor, path: Tensor) -> Tensor:
    """x (B, …) times the factor (B, 1, 1) of each image's path."""
    return x * path.reshape(-1, *[1] * (x.dim() - 1))
