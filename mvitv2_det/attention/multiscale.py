"""Multiscale (pooling) attention, Fig. 2 of the paper.

In this order: project to q, k, v; pool and normalise each; cut into windows; attend with
relative positions; put the windows together; add the pooled q (Eq. 5); project.

Axes: B images, H × W tokens, C channels, h heads, D = C / h channels per head,
N = B·h maps.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import position, windows
from .attend import attend
from .backends import AUTO, check_name, choose
from .pooling import head_pool, pool_map


class MultiScaleAttention(nn.Module):
    """Pooling attention over whole maps or windows, with decomposed relative positions.

    Parameter names are those of ``detectron2.modeling.backbone.mvit.MultiScaleAttention``.

    Args:
        dim: channels coming in.
        dim_out: channels inside and going out.
        num_heads: attention heads; must divide ``dim_out``.
        qkv_bias: whether the q, k, v projection has a bias.
        norm_layer: makes the normalisation of pooled q, k and v from their channels.
        pool_kernel: kernel of the pooling convolutions.
        stride_q, stride_kv: strides of the query and of the key and value pooling.
        residual_pooling: whether the pooled query is added to the output (Eq. 5).
        window_size: side of the windows in incoming tokens; 0 attends over the whole map.
        use_rel_pos: whether there are relative position tables.
        rel_pos_zero_init: whether they start at zero; otherwise truncated normal, std 0.02.
        table_size: side of the token grid, before pooling, that the tables are made for.
        attention_backend: what computes it, see :mod:`mvitv2_det.attention.backends`.

    Raises:
        ValueError: there is no such backend.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        pool_kernel: tuple[int, int] = (3, 3),
        stride_q: int = 1,
        stride_kv: int = 1,
        residual_pooling: bool = True,
        window_size: int = 0,
        use_rel_pos: bool = True,
        rel_pos_zero_init: bool = True,
        table_size: int = 56,
        attention_backend: str = AUTO,
    ) -> None:
        super().__init__()
        check_name(attention_backend)
        self.attention_backend = attention_backend
        head_dim = dim_out // num_heads
        self.num_heads = num_heads
        self.scale = head_dim**-0.5
        self.residual_pooling = residual_pooling
        self.window_size = window_size
        self.stride_q = stride_q
        self.stride_kv = stride_kv

        self.qkv = nn.Linear(dim, 3 * dim_out, bias=qkv_bias)
        self.proj = nn.Linear(dim_out, dim_out)
        self.pool_q = head_pool(head_dim, pool_kernel, stride_q)
        self.norm_q = norm_layer(head_dim)
        self.pool_k = head_pool(head_dim, pool_kernel, stride_kv)
        self.norm_k = norm_layer(head_dim)
        self.pool_v = head_pool(head_dim, pool_kernel, stride_kv)
        self.norm_v = norm_layer(head_dim)

        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            rows = position.table_length(table_size, stride_q, stride_kv)
            self.rel_pos_h = nn.Parameter(torch.zeros(rows, head_dim))
            self.rel_pos_w = nn.Parameter(torch.zeros(rows, head_dim))
            if not rel_pos_zero_init:
                nn.init.trunc_normal_(self.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(self.rel_pos_w, std=0.02)

    @property
    def position_tables(self) -> tuple[Tensor, ...]:
        """One relative position table (L, D) per axis; empty without relative positions."""
        return (self.rel_pos_h, self.rel_pos_w) if self.use_rel_pos else ()

    def forward(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """(B, H, W, C_in) to (B, H / stride_q, W / stride_q, C_out), sizes rounded up.

        Args:
            x: tokens.
            norm: normalises ``x`` first. Given here, and not before, so that backends can make
                one step of it and the projection.

        Raises:
            ValueError: the backend named cannot run this module, or not here; the message says why.
        """
        norm = nn.Identity() if norm is None else norm
        return choose(self.attention_backend, self, x).run(self, x, norm)

    def reference(self, x: Tensor) -> Tensor:
        """As :meth:`forward`, in plain operations: what every backend is compared with."""
        q, k, v = self._project(x)
        q = self.norm_q(pool_map(q, self.pool_q))
        k = self.norm_k(pool_map(k, self.pool_k))
        v = self.norm_v(pool_map(v, self.pool_v))
        z = self._attend_in_windows(q, k, v) if self.window_size else self._attend(q, k, v)
        if self.residual_pooling:
            z = z + q
        return self.proj(self._merge_heads(z))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, W, C_in) to q, k, v, each (N, H, W, D)."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height, width, 3, self.num_heads, -1)
        return qkv.permute(3, 0, 4, 1, 2, 5).flatten(1, 2).unbind(0)

    def _attend_in_windows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As :meth:`_attend`, within windows that cover the same image region in q, k and v."""
        window_q, window_kv = self.window_size // self.stride_q, self.window_size // self.stride_kv
        z = self._attend(
            windows.partition(q, window_q),
            windows.partition(k, window_kv),
            windows.partition(v, window_kv),
        )
        return windows.unpartition(z, q.shape[1:3])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (N, Qh, Qw, D), k and v (N, Kh, Kw, D) to (N, Qh, Qw, D)."""
        logits = position.axis_logits(q, self.position_tables, k.shape[1:-1])
        return attend(q, k, v, self.scale, logits)

    def _merge_heads(self, z: Tensor) -> Tensor:
        """(N, H, W, D) to (B, H, W, C)."""
        return z.unflatten(0, (-1, self.num_heads)).permute(0, 2, 3, 1, 4).flatten(3)
