"""One transformer block.

Axes: B images, H × W tokens, C channels.
"""

from collections.abc import Callable

from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from ..attention import MultiScaleAttention
from ..attention.pooling import pool_map, skip_pool
from ..fused.choice import REFERENCE
from ..fused.mlp import normed_mlp
from ..fused.mlp import why_not as normed_mlp_why_not
from ..fused.norm_linear import normed_linear
from ..fused.norm_linear import why_not as normed_linear_why_not
from ..fused.residual_linear import Skip
from ..fused.skip_pool import pool_skip_map
from .schedule import BlockSpec

# Of the attention's and the MLP's path, (B, 1, 1, 1) each; None for 1.
PathScales = tuple[Tensor | None, Tensor | None]


class MultiScaleBlock(nn.Module):
    """Normalise, attend and add; normalise, MLP and add.

    Where the attention strides its queries, the skip connection around it is max-pooled; where
    attention or MLP changes the width, the skip connection around it is a projection of the
    normalised input (appendix B.1). Parameter names are those of
    ``detectron2.modeling.backbone.mvit.MultiScaleBlock``.

    Args:
        spec: the numbers of this block.
        mlp_ratio: hidden channels of the MLP over its input channels.
        norm_layer: makes a normalisation from its channels.
        act_layer: makes the activation of the MLP.
        attention_options: further keywords of :class:`MultiScaleAttention`.
    """

    def __init__(
        self,
        spec: BlockSpec,
        *,
        mlp_ratio: float = 4.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        **attention_options,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(spec.dim)
        self.attn = MultiScaleAttention(
            spec.dim,
            spec.dim_attention,
            spec.num_heads,
            norm_layer=norm_layer,
            stride_q=spec.stride_q,
            stride_kv=spec.stride_kv,
            window_size=spec.window_size,
            shift=spec.shift,
            pool_q=spec.pool_q,
            pool_kv=spec.pool_kv,
            table_size=spec.table_size,
            **attention_options,
        )
        self.drop_path = DropPath(spec.drop_path) if spec.drop_path > 0 else nn.Identity()
        self.norm2 = norm_layer(spec.dim_attention)
        self.mlp = Mlp(
            in_features=spec.dim_attention,
            hidden_features=int(spec.dim_attention * mlp_ratio),
            out_features=spec.dim_out,
            act_layer=act_layer,
        )
        self.widens_in_attention = spec.dim_attention != spec.dim
        self.widens_in_mlp = spec.dim_out != spec.dim_attention
        # Attention and MLP never both widen in one block, so one projection serves either.
        if self.widens_in_attention or self.widens_in_mlp:
            self.proj = nn.Linear(spec.dim, spec.dim_out)
        self.pool_skip = skip_pool(spec.stride_q)

    def forward(self, x: Tensor, path_scales: PathScales | None = None) -> Tensor:
        """(B, H, W, C_in) to (B, H / stride_q, W / stride_q, C_out), sizes rounded up.

        Args:
            x: tokens.
            path_scales: of :meth:`draw_path_scales`; drawn here where there are none. Compiled
                blocks are given them: their rates are then no part of the compiled code, and the
                random numbers are those of a model that is not compiled.
        """
        if path_scales is None:
            path_scales = self.draw_path_scales(x)
        compute = self._reference if self._why_not_fused(x) else self._fused
        return compute(x, path_scales)

    def draw_path_scales(self, x: Tensor) -> PathScales:
        """What stochastic depth scales the paths of each image of ``x`` (B, H, W, C_in) by."""
        return self._path_scale(x), self._path_scale(x)

    def _reference(self, x: Tensor, path_scales: PathScales) -> Tensor:
        attention_scale, mlp_scale = path_scales
        normed = self.norm1(x)
        skip = self.proj(normed) if self.widens_in_attention else x
        x = Skip(pool_map(skip, self.pool_skip), attention_scale).add(self.attn(normed))
        normed = self.norm2(x)
        skip = self.proj(normed) if self.widens_in_mlp else x
        return Skip(skip, mlp_scale).add(self.mlp(normed))

    def _fused(self, x: Tensor, path_scales: PathScales) -> Tensor:
        """As :meth:`_reference`; norms, and what else is cheap, are computed again in backward."""
        attention_scale, mlp_scale = path_scales
        skip = normed_linear(x, self.norm1, self.proj)[0] if self.widens_in_attention else x
        skip = Skip(pool_skip_map(skip, self.pool_skip), attention_scale)
        x = self.attn(x, self.norm1, skip)
        skip = normed_linear(x, self.norm2, self.proj)[0] if self.widens_in_mlp else None
        return normed_mlp(x, self.norm2, self.mlp, skip, mlp_scale)

    def _why_not_fused(self, x: Tensor) -> str | None:
        if self.attn.attention_backend == REFERENCE:
            return "the reference is asked for"
        return normed_linear_why_not(x, self.norm1) or normed_mlp_why_not(x, self.norm2, self.mlp)

    def _path_scale(self, x: Tensor) -> Tensor | None:
        """What stochastic depth scales each image's path by, (B, 1, 1, 1); None for 1."""
        if not self.training or isinstance(self.drop_path, nn.Identity):
            return None
        return self.drop_path(x.new_ones(x.shape[0], 1, 1, 1))
