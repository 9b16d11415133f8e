"""Multiscale (pooling) attention, Fig. 2 of the paper, and what the paper compares it with.

In this order: project to q, k, v; pool and normalise each; cut into windows; attend with
relative positions; put the windows together; add the pooled q (Eq. 5); project.

Axes: B images or clips; n axes of a token map, written *axes, H × W or T × H × W; C channels, h
heads, D = C / h channels per head, N = B·h (and, cut into windows, times their number), Q_a
queries and K_a keys along axis a. A class token travels beside the map, (B, 1, C).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .attend import attention_logits, softmax_over_keys, weighted_values
from .pooling import head_pool, pool_map
from .position import key_term, query_term, table_name, value_term
from .spec import AttentionSpec
from .windows import WindowGrid, mask_terms


class MultiScaleAttention(nn.Module):
    """Pooling attention over whole maps or windows, with relative positions.

    Parameter names are those of ``detectron2.modeling.backbone.mvit.MultiScaleAttention`` and of
    PySlowFast. Tables that neither has are those of the keys (``rel_pos_h_k``, …), of the values
    (``rel_pos_h_v``, …), and the joint ones (``rel_pos_joint``, …).

    Args:
        spec: the options.
        norm_layer: makes the normalisation of pooled q, k and v from their channels.
    """

    pool_q: nn.Conv2d | nn.Conv3d | None
    pool_k: nn.Conv2d | nn.Conv3d | None
    pool_v: nn.Conv2d | nn.Conv3d | None
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

        for term in spec.position_terms:
            for table in spec.tables:
                shape = table.shape(spec.table_size, spec.stride_q, spec.stride_kv, spec.head_dim)
                embeddings = nn.Parameter(torch.zeros(shape))
                if not spec.rel_pos_zero_init:
                    nn.init.trunc_normal_(embeddings, std=0.02)
                self.register_parameter(table_name(table.name, term), embeddings)

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Attends from every token to all others.

        Args:
            x: (B, *axes, C_in).
            token: a class token (B, 1, C_in), which is not pooled and has no positions.

        Returns:
            (B, *axes / stride_q, C_out), sizes rounded up; with a class token also (B, 1, C_out).

        Raises:
            ValueError: there are windows, which a class token would have to be in all at once.
        """
        q, k, v = self.project_and_pool(x)
        if token is None:
            z = self.attend(q, k, v)
        else:
            token_q, token_k, token_v = self.project_token(token)
            z = self.attend_with_token(q, k, v, token_k, token_v)
            token_z = self.attend_from_token(token_q, k, v, token_k, token_v)
        if self.spec.residual_pooling:
            z = z + q
        if token is None:
            return self.proj(self.merge_heads(z))
        if self.spec.residual_pooling and self.spec.residual_class_token:
            token_z = token_z + token_q
        return self.proj(self.merge_heads(z)), self.proj(self.merge_heads(token_z))

    def project_and_pool(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, *axes, C_in) to the pooled and normalised q, k and v, each (N, *axes', D)."""
        q, k, v = self._project(x)
        return (
            _pooled(q, self.pool_q, self.norm_q),
            _pooled(k, self.pool_k, self.norm_k),
            _pooled(v, self.pool_v, self.norm_v),
        )

    def project_token(self, token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A class token (B, 1, C_in) to its q, k and v, each (N, 1, D): normalised, not pooled."""
        norms = (self.norm_q, self.norm_k, self.norm_v)
        q, k, v = (
            part if norm is None else norm(part)
            for part, norm in zip(self._project(token), norms, strict=True)
        )
        return q, k, v

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, *axes, C_in) to q, k and v, each (N, *axes, D)."""
        # torch.onnx moves axes right only if they are counted from the first, and gets sizes wrong
        # after unflatten(-1, …).
        qkv = self.qkv(x).reshape(*x.shape[:-1], 3, self.spec.num_heads, -1)
        last = x.dim() - 1
        return qkv.movedim((last, last + 1), (0, 2)).flatten(1, 2).unbind(0)

    def window_grids(
        self, query_size: Sequence[int], key_size: Sequence[int]
    ) -> tuple[WindowGrid, WindowGrid]:
        """The windows over pooled queries and over pooled keys: the same regions of the image."""
        window, shift = self.spec.window_size, self.spec.shift
        (query_height, query_width), (key_height, key_width) = query_size, key_size
        stride_q, stride_kv = self.spec.stride_q[0], self.spec.stride_kv[0]
        return (
            WindowGrid((query_height, query_width), window // stride_q, shift // stride_q),
            WindowGrid((key_height, key_width), window // stride_kv, shift // stride_kv),
        )

    def fill_windows(self, keys: WindowGrid, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Completes the windows of keys and values (N, H, W, D), if zeros are not to do it."""
        if (fill := self.window_fill) is None:
            return k, v
        fill = fill.reshape(2, self.spec.num_heads, 1, 1, -1)
        fill = fill.repeat(1, k.shape[0] // self.spec.num_heads, 1, 1, 1)
        return keys.filled(k, fill[0]), keys.filled(v, fill[1])

    @property
    def window_fill(self) -> Tensor | None:
        """What completes windows of k and of v, (2, C): the projection's bias; None for zeros."""
        if not self.spec.window_fill_is_projected:
            return None
        return self.qkv.bias.unflatten(0, (3, -1))[1:]

    def position_tables(self, term: str) -> tuple[Tensor, ...]:
        """The tables of a term, in the order of ``spec.tables``; empty without them."""
        if term not in self.spec.position_terms:
            return ()
        return tuple(getattr(self, table_name(table.name, term)) for table in self.spec.tables)

    def _placed_tables(self, term: str) -> list[tuple[Tensor, tuple[int, ...]]]:
        """The tables of a term, each with the axes that it covers."""
        if not (tables := self.position_tables(term)):
            return []
        covered = [table.axes for table in self.spec.tables]
        return list(zip(tables, covered, strict=True))

    def logits(self, q: Tensor, k: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """Content and position logits, and masks, of every query and key (Eq. 3).

        Args:
            q: (N, Q_1, …, Q_n, D), pooled, of whole maps or of windows.
            k: (N, K_1, …, K_n, D).
            masks: from :func:`~mvitv2_det.attention.windows.mask_terms`.

        Returns:
            (N, Q_1, …, Q_n, K_1, …, K_n).
        """
        terms = [
            query_term(q, table, axes, k.shape[1:-1]) for table, axes in self._placed_tables("q")
        ]
        terms += [
            key_term(k, table, axes, q.shape[1:-1]) for table, axes in self._placed_tables("k")
        ]
        return attention_logits(q, k, self.spec.scale, [*terms, *masks])

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Softmax product within windows, or over the whole map (Eq. 3).

        Args:
            q: (N, Q_1, …, Q_n, D), pooled, of whole maps.
            k, v: (N, K_1, …, K_n, D).

        Returns:
            (N, Q_1, …, Q_n, D), without the residual query.
        """
        if not self.spec.window_size:
            return self._attend(q, k, v)
        queries, keys = self.window_grids(q.shape[1:3], k.shape[1:3])
        k, v = self.fill_windows(keys, k, v)
        q, k, v = queries.partition(q), keys.partition(k), keys.partition(v)
        masks = mask_terms(queries, keys, q, mask_padding=self.spec.mask_window_padding)
        return queries.unpartition(self._attend(q, k, v, masks))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        attention = softmax_over_keys(self.logits(q, k, masks))
        return self._add_value_terms(weighted_values(attention, v), attention)

    def _add_value_terms(self, z: Tensor, attention: Tensor) -> Tensor:
        """Adds E(rel v) of attention (N, Q_1, …, Q_n, K_1, …, K_n) to z (N, Q_1, …, Q_n, D)."""
        if tables := self._placed_tables("v"):
            terms = [value_term(attention, table, axes) for table, axes in tables]
            z = z + sum(terms[1:], terms[0])
        return z

    def attend_with_token(
        self, q: Tensor, k: Tensor, v: Tensor, token_k: Tensor, token_v: Tensor
    ) -> Tensor:
        """Attends over the map and a class token (N, 1, D), a key without a position.

        Raises:
            ValueError: there are windows.
        """
        if self.spec.window_size:
            raise ValueError("a class token needs attention over the whole map, not windows")
        logits = self.logits(q, k)
        of_token = attention_logits(q, token_k, self.spec.scale)  # (N, Q_1, …, Q_n, 1)
        first_key_axis = q.dim() - 1
        joined = torch.cat((of_token, logits.flatten(first_key_axis)), dim=-1).softmax(dim=-1)
        on_token, on_map = joined[..., :1], joined[..., 1:].reshape(logits.shape)
        z = self._add_value_terms(weighted_values(on_map, v), on_map)
        return z + on_token.flatten(1, -2).matmul(token_v).reshape(z.shape)

    def attend_from_token(
        self, token_q: Tensor, k: Tensor, v: Tensor, token_k: Tensor, token_v: Tensor
    ) -> Tensor:
        """What the query of a class token gets, (N, 1, D): no position enters."""
        keys = torch.cat((token_k, k.flatten(1, -2)), dim=1)
        values = torch.cat((token_v, v.flatten(1, -2)), dim=1)
        attention = softmax_over_keys(attention_logits(token_q, keys, self.spec.scale))
        return weighted_values(attention, values)

    def merge_heads(self, z: Tensor) -> Tensor:
        """(N, *axes, D) to (B, *axes, C)."""
        return z.unflatten(0, (-1, self.spec.num_heads)).movedim(1, -2).flatten(-2)


def _pooled(x: Tensor, pool: nn.Module | None, norm: nn.Module | None) -> Tensor:
    """(N, *axes, D) to (N, *axes', D); unchanged without pooling."""
    return x if pool is None or norm is None else norm(pool_map(x, pool))
