"""Multiscale (pooling) attention, Fig. 2 of the paper, and what the paper compares it with.

In this order: project to q, k, v; pool and normalise each; cut into windows; attend with
relative positions; put the windows together; add the pooled q (Eq. 5); project.

A kind of attention is two choices: whether and how far q, k and v are pooled, and where the
windows lie. Without pooling it is a plain transformer's; see Table 4.

Axes: B images, H × W tokens, C channels, h heads, D = C / h channels per head,
N = B·h maps.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..fused.choice import AUTO, AttentionBackend, check_name, choose
from ..fused.residual_linear import Skip
from .attend import attend
from .pooling import head_pool, pool_map
from .position import RELATIVE, TERMS, table_name
from .windows import WindowGrid, mask_terms


class MultiScaleAttention(nn.Module):
    """Pooling attention over whole maps or windows, with relative positions.

    Parameter names are those of ``detectron2.modeling.backbone.mvit.MultiScaleAttention``. Tables
    that it does not have are ``rel_pos_h_k``, ``rel_pos_w_k`` (of the keys), ``rel_pos_h_v``,
    ``rel_pos_w_v`` (of the values), and ``rel_pos_joint``, ``rel_pos_joint_k``,
    ``rel_pos_joint_v``.

    Args:
        dim: channels coming in.
        dim_out: channels inside and going out.
        num_heads: attention heads; must divide ``dim_out``.
        qkv_bias: whether the q, k, v projection has a bias.
        norm_layer: makes the normalisation of pooled q, k and v from their channels.
        pool_q, pool_kv: whether queries, and keys and values, are pooled and normalised at all.
        pool_kernel: kernel of the pooling convolutions.
        stride_q, stride_kv: strides of the query and of the key and value pooling.
        residual_pooling: whether the query is added to the output (Eq. 5), pooled or not.
        window_size: side of the windows in incoming tokens; 0 attends over the whole map.
        shift: tokens by which the windows are shifted (Swin); 0 leaves them.
        mask_window_padding: hide the zeros that maps are padded with from their queries. The
            reference, and so every released weight, lets them be seen.
        use_rel_pos: whether there are relative position tables.
        rel_pos_kind: ``"decomposed"``, one table per axis, or ``"joint"``, one for both.
        rel_pos_terms: which of ``"q"``, ``"k"`` and ``"v"`` meet a table of their own
            (appendix A.4).
        rel_pos_zero_init: whether they start at zero; otherwise truncated normal, std 0.02.
        table_size: side of the token grid, before pooling, that the tables are made for.
        attention_backend: what computes it, see :mod:`mvitv2_det.attention.backends`.

    Raises:
        ValueError: a keyword's value is none of those above, or a stride is without pooling.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        pool_q: bool = True,
        pool_kv: bool = True,
        pool_kernel: tuple[int, int] = (3, 3),
        stride_q: int = 1,
        stride_kv: int = 1,
        residual_pooling: bool = True,
        window_size: int = 0,
        shift: int = 0,
        mask_window_padding: bool = False,
        use_rel_pos: bool = True,
        rel_pos_kind: str = "decomposed",
        rel_pos_terms: Sequence[str] = ("q",),
        rel_pos_zero_init: bool = True,
        table_size: int = 56,
        attention_backend: str = AUTO,
    ) -> None:
        super().__init__()
        _check_pooling("q", pool_q, stride_q)
        _check_pooling("kv", pool_kv, stride_kv)
        check_name(attention_backend)
        self.attention_backend = attention_backend
        head_dim = dim_out // num_heads
        self.num_heads = num_heads
        self.scale = head_dim**-0.5
        self.residual_pooling = residual_pooling
        self.window_size = window_size
        self.shift = shift
        self.mask_window_padding = mask_window_padding
        self.stride_q = stride_q
        self.stride_kv = stride_kv

        self.qkv = nn.Linear(dim, 3 * dim_out, bias=qkv_bias)
        self.proj = nn.Linear(dim_out, dim_out)
        for name, pooled, stride in (
            ("q", pool_q, stride_q),
            ("k", pool_kv, stride_kv),
            ("v", pool_kv, stride_kv),
        ):
            pool = head_pool(head_dim, pool_kernel, stride) if pooled else None
            self.register_module(f"pool_{name}", pool)
            self.register_module(f"norm_{name}", norm_layer(head_dim) if pooled else None)

        self.rel_pos_kind = rel_pos_kind
        self.rel_pos_terms = tuple(rel_pos_terms) if use_rel_pos else ()
        _check_positions(rel_pos_kind, rel_pos_terms)
        positions = RELATIVE[rel_pos_kind]
        shape = positions.table_shape(table_size, stride_q, stride_kv, head_dim)
        for term in self.rel_pos_terms:
            for name in positions.TABLES:
                table = nn.Parameter(torch.zeros(shape))
                if not rel_pos_zero_init:
                    nn.init.trunc_normal_(table, std=0.02)
                self.register_parameter(table_name(name, term), table)

    def position_tables(self, term: str = "q") -> tuple[Tensor, ...]:
        """The tables of a term: one (L, D) per axis, or a joint (L, L, D); empty without them."""
        if term not in self.rel_pos_terms:
            return ()
        names = RELATIVE[self.rel_pos_kind].TABLES
        return tuple(getattr(self, table_name(name, term)) for name in names)

    def forward(self, x: Tensor, norm: nn.Module | None = None, skip: Skip | None = None) -> Tensor:
        """(B, H, W, C_in) to (B, H / stride_q, W / stride_q, C_out), sizes rounded up.

        Args:
            x: tokens.
            norm: normalises ``x`` first. Given here, and not before, so that backends can make
                one step of it and the projection.
            skip: the connection around it all, added to the output; for the same reason.

        Raises:
            ValueError: the backend named cannot run this module, or not here; the message says why.
        """
        norm = nn.Identity() if norm is None else norm
        return self.backend(x).run(self, x, norm, skip)

    def backend(self, x: Tensor) -> AttentionBackend:
        """What computes this module on ``x`` (B, H, W, C_in).

        Raises:
            ValueError: the backend named cannot run this module, or not here; the message says why.
        """
        return choose(self.attention_backend, self, x)

    def reference(self, x: Tensor) -> Tensor:
        """As :meth:`forward`, in plain operations: what every backend is compared with."""
        q, k, v = self._project(x)
        q = _pooled(q, self.pool_q, self.norm_q)
        k = _pooled(k, self.pool_k, self.norm_k)
        v = _pooled(v, self.pool_v, self.norm_v)
        z = self._attend_in_windows(q, k, v) if self.window_size else self._attend(q, k, v)
        if self.residual_pooling:
            z = z + q
        return self.proj(self._merge_heads(z))

    def window_grids(
        self, query_size: tuple[int, int], key_size: tuple[int, int]
    ) -> tuple[WindowGrid, WindowGrid]:
        """The windows over pooled queries and over pooled keys: the same regions of the image."""
        return tuple(
            WindowGrid(tuple(size), self.window_size // stride, self.shift // stride)
            for size, stride in ((query_size, self.stride_q), (key_size, self.stride_kv))
        )

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, W, C_in) to q, k, v, each (N, H, W, D)."""
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height, width, 3, self.num_heads, -1)
        return qkv.permute(3, 0, 4, 1, 2, 5).flatten(1, 2).unbind(0)

    def _attend_in_windows(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As :meth:`_attend`, within windows."""
        queries, keys = self.window_grids(q.shape[1:3], k.shape[1:3])
        q, k, v = queries.partition(q), keys.partition(k), keys.partition(v)
        masks = mask_terms(queries, keys, q, mask_padding=self.mask_window_padding)
        return queries.unpartition(self._attend(q, k, v, masks))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """q (N, Qh, Qw, D), k and v (N, Kh, Kw, D) to (N, Qh, Qw, D)."""
        positions = RELATIVE[self.rel_pos_kind]
        query_size, key_size = q.shape[1:-1], k.shape[1:-1]
        terms = positions.query_terms(q, self.position_tables("q"), key_size)
        if key_tables := self.position_tables("k"):
            terms += positions.key_terms(k, key_tables, query_size)
        value_term = None
        if value_tables := self.position_tables("v"):
            value_term = partial(positions.value_term, tables=value_tables)
        return attend(q, k, v, self.scale, [*terms, *masks], value_term)

    def _merge_heads(self, z: Tensor) -> Tensor:
        """(N, H, W, D) to (B, H, W, C)."""
        return z.unflatten(0, (-1, self.num_heads)).permute(0, 2, 3, 1, 4).flatten(3)


def _pooled(x: Tensor, pool: nn.Module | None, norm: nn.Module | None) -> Tensor:
    """(N, H, W, D) to (N, H', W', D); as it is where there is no pooling."""
    return x if pool is None else norm(pool_map(x, pool))


def _check_pooling(name: str, pooled: bool, stride: int) -> None:
    if stride > 1 and not pooled:
        raise ValueError(f"stride_{name} = {stride} needs pool_{name}=True")


def _check_positions(kind: str, terms: Sequence[str]) -> None:
    if kind not in RELATIVE:
        raise ValueError(f"rel_pos_kind must be {' or '.join(RELATIVE)}, got {kind!r}")
    if not terms or set(terms) - set(TERMS) or len(set(terms)) < len(terms):
        raise ValueError(
            f"rel_pos_terms must be some of {', '.join(TERMS)}, each once, got {list(terms)}; "
            f"use_rel_pos=False goes without"
        )
