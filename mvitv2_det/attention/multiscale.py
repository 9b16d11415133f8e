"""Multiscale (pooling) attention, Fig. 2 of the paper, and what the paper compares it with.

In this order: project to q, k, v; pool and normalise each; cut into windows; attend with
relative positions; put the windows together; add the pooled q (Eq. 5); project.

Axes: B images, H × W tokens, C channels, h heads, D = C / h channels per head, N = B·h (and, cut
into windows, times their number), Q_a queries and K_a keys along axis a.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .attend import attention_logits, softmax_over_keys, weighted_values
from .pooling import head_pool, pool_map
from .position import RELATIVE, table_name
from .spec import AttentionSpec
from .windows import WindowGrid, mask_terms


class MultiScaleAttention(nn.Module):
    """Pooling attention over whole maps or windows, with relative positions.

    Parameter names are those of ``detectron2.modeling.backbone.mvit.MultiScaleAttention``. Tables
    that it does not have are ``rel_pos_h_k``, ``rel_pos_w_k`` (of the keys), ``rel_pos_h_v``,
    ``rel_pos_w_v`` (of the values), and ``rel_pos_joint``, ``rel_pos_joint_k``,
    ``rel_pos_joint_v``.

    Args:
        spec: the options.
        norm_layer: makes the normalisation of pooled q, k and v from their channels.
    """

    pool_q: nn.Conv2d | None
    pool_k: nn.Conv2d | None
    pool_v: nn.Conv2d | None
    norm_q: nn.Module | None
    norm_k: nn.Module | None
    norm_v: nn.Module | None

    def __init__(
        self, spec: AttentionSpec, norm_layer: Callable[[int], nn.Module] = nn.LayerNorm
    ) -> None:
        super().__init__()
        self.spec = spec
        self.qkv = nn.Linear(spec.dim, 3 * spec.dim_out, bias=spec.qkv_bias)
        self.proj = nn.Linear(spec.dim_out, spec.dim_out)
        for name, pooled, stride in (
            ("q", spec.pool_q, spec.stride_q),
            ("k", spec.pool_kv, spec.stride_kv),
            ("v", spec.pool_kv, spec.stride_kv),
        ):
            pool = head_pool(spec.head_dim, spec.pool_kernel, stride) if pooled else None
            self.register_module(f"pool_{name}", pool)
            self.register_module(f"norm_{name}", norm_layer(spec.head_dim) if pooled else None)

        positions = RELATIVE[spec.rel_pos_kind]
        shape = positions.table_shape(spec.table_size, spec.stride_q, spec.stride_kv, spec.head_dim)
        for term in spec.position_terms:
            for name in positions.TABLES:
                table = nn.Parameter(torch.zeros(shape))
                if not spec.rel_pos_zero_init:
                    nn.init.trunc_normal_(table, std=0.02)
                self.register_parameter(table_name(name, term), table)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C_in) to (B, H / stride_q, W / stride_q, C_out), sizes rounded up."""
        q, k, v = self.project_and_pool(x)
        z = self.attend(q, k, v)
        if self.spec.residual_pooling:
            z = z + q
        return self.proj(self.merge_heads(z))

    def project_and_pool(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, W, C_in) to the pooled and normalised q, k and v, each (N, H', W', D)."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height, width, 3, self.spec.num_heads, -1)
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).flatten(1, 2).unbind(0)
        return (
            _pooled(q, self.pool_q, self.norm_q),
            _pooled(k, self.pool_k, self.norm_k),
            _pooled(v, self.pool_v, self.norm_v),
        )

    def window_grids(
        self, query_size: Sequence[int], key_size: Sequence[int]
    ) -> tuple[WindowGrid, WindowGrid]:
        """The windows over pooled queries and over pooled keys: the same regions of the image."""
        window, shift = self.spec.window_size, self.spec.shift
        (query_height, query_width), (key_height, key_width) = query_size, key_size
        stride_q, stride_kv = self.spec.stride_q, self.spec.stride_kv
        return (
            WindowGrid((query_height, query_width), window // stride_q, shift // stride_q),
            WindowGrid((key_height, key_width), window // stride_kv, shift // stride_kv),
        )

    def position_tables(self, term: str) -> tuple[Tensor, ...]:
        """The tables of a term: one (L, D) per axis, or a joint (L, L, D); empty without them."""
        if term not in self.spec.position_terms:
            return ()
        names = RELATIVE[self.spec.rel_pos_kind].TABLES
        return tuple(getattr(self, table_name(name, term)) for name in names)

    def logits(self, q: Tensor, k: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """Content and position logits, and masks, of every query and key (Eq. 3).

        Args:
            q: (N, Q_h, Q_w, D), pooled, of whole maps or of windows.
            k: (N, K_h, K_w, D).
            masks: from :func:`~mvitv2_det.attention.windows.mask_terms`.

        Returns:
            (N, Q_h, Q_w, K_h, K_w).
        """
        positions = RELATIVE[self.spec.rel_pos_kind]
        terms = positions.query_terms(q, self.position_tables("q"), k.shape[1:-1])
        terms += positions.key_terms(k, self.position_tables("k"), q.shape[1:-1])
        return attention_logits(q, k, self.spec.scale, [*terms, *masks])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax product within windows, or over the whole map (Eq. 3).

        Args:
            q: (N, Q_h, Q_w, D), pooled, of whole maps.
            k, v: (N, K_h, K_w, D).

        Returns:
            (N, Q_h, Q_w, D), without the residual query.
        """
        if not self.spec.window_size:
            return self._attend(q, k, v)
        queries, keys = self.window_grids(q.shape[1:3], k.shape[1:3])
        q, k, v = queries.partition(q), keys.partition(k), keys.partition(v)
        masks = mask_terms(queries, keys, q, mask_padding=self.spec.mask_window_padding)
        return queries.unpartition(self._attend(q, k, v, masks))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        attention = softmax_over_keys(self.logits(q, k, masks))
        z = weighted_values(attention, v)
        if tables := self.position_tables("v"):
            z = z + RELATIVE[self.spec.rel_pos_kind].value_term(attention, tables)
        return z

    def merge_heads(self, z: Tensor) -> Tensor:
        """(N, H, W, D) to (B, H, W, C)."""
        return z.unflatten(0, (-1, self.spec.num_heads)).permute(0, 2, 3, 1, 4).flatten(3)


def _pooled(x: Tensor, pool: nn.Module | None, norm: nn.Module | None) -> Tensor:
    """(N, H, W, D) to (N, H', W', D); unchanged without pooling."""
    return x if pool is None or norm is None else norm(pool_map(x, pool))
