"""Pooling and the softmax product of attention in tiles whose logits stay in the cache.

Maps are channels-last with the heads side by side, from the projection to the output: there are
no layout copies around the pooling. Saved for backward: the maps that come in, alone, or what they
are made of; those are the projected ones, or keys and values convolved already
(:mod:`.folded_pooling`). Pooled and normalised maps and logits are computed again.

A class token is one more key of the only window, without a position, and one more query.

Axes: B images, H × W tokens, C = h·d channels of h heads, n windows side by side, N = n·B·h,
r × c queries of a tile, K = K_h·K_w keys of a window, and one of a class token.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..applying import applied
from ..head_pool import HeadPool, flat_parameters, with_flat_parameters
from ..norm_linear import Source
from ..products import add_products, write_products
from ..shape import AttentionShape
from ..tokens import cast
from .position_logits import empty_logits, position_logits, position_logits_backward
from .tiles import Tile, merge_windows, split_windows, tiles_of


def pool_and_attend(
    maps: Sequence[Tensor],
    pools: Sequence[HeadPool],
    embeddings: Sequence[Tensor],
    shape: AttentionShape,
    token: Sequence[Tensor] | None = None,
    source: Source | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Pools and normalises q, k and v, attends in windows, and adds the pooled q.

    Args:
        maps: q, k and v before pooling, (B, H, W, C) each, each with its own H and W.
        pools: the pooling of each of them.
        embeddings: R of Eq. 4 per axis, as :meth:`AttentionShape.on_map` takes them, or none.
        shape: heads, scale, windows and residual.
        token: q, k and v of a class token, (B·h, 1, d) each, normalised; there is one window then.
        source: what is saved for backward in place of the maps; None for the maps themselves.

    Returns:
        (B, H / stride_q, W / stride_q, C), and what the class token attends to, (B·h, 1, d),
        without its q; None without one.
    """
    of_token = (None, None, None) if token is None else token
    source = source or Source.of(*maps)
    return applied(
        _PoolAndAttend, shape, pools, source, *of_token, *maps, *flat_parameters(pools), *embeddings
    )


class _Scratch:
    """Memory that tile after tile writes to: fresh memory costs as much as what fills it."""

    def __init__(self, like: Tensor) -> None:
        self._memory = like.new_empty(0)

    def of(self, *shape: int) -> Tensor:
        """A tensor of that shape; what was handed out before is written over."""
        size = math.prod(shape)
        if len(self._memory) < size:
            self._memory = self._memory.new_empty(size)
        return self._memory[:size].view(shape)


class _PoolAndAttend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shape, pools, source, token_q, token_k, token_v, q, k, v, *tensors):
        ctx.shape, ctx.pools, ctx.make_maps = shape, pools, source.make
        ctx.num_parameters, ctx.num_tensors = len(flat_parameters(pools)), len(tensors)
        ctx.save_for_backward(token_q, token_k, token_v, *tensors, *source.tensors)
        parameters, embeddings = _split(tensors, ctx.num_parameters)
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = _pooled((q, k, v), with_flat_parameters(pools, parameters))
            token_q, token_k, token_v = cast((token_q, token_k, token_v), q.dtype)
            keys, values = _keys_and_values(k, v, token_k, token_v, shape)
            z = attend(q, keys, values, cast(shape.on_map(embeddings), q.dtype), shape)
            if token_q is None:
                return z, None
            return z, _token_weights(token_q, keys) @ values.flatten(0, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, grad_token):
        token_q, token_k, token_v, *saved = ctx.saved_tensors
        tensors, made_of = saved[: ctx.num_tensors], saved[ctx.num_tensors :]
        q, k, v = ctx.make_maps(*made_of)
        token = cast((token_q, token_k, token_v), q.dtype)
        parameters, embeddings = _split(tensors, ctx.num_parameters)
        with torch.enable_grad(), torch.autocast(q.device.type, enabled=False):
            maps = [tensor.detach().requires_grad_() for tensor in (q, k, v)]
            parameters = [
                None if tensor is None else tensor.detach().requires_grad_()
                for tensor in parameters
            ]
            pooled = _pooled(maps, with_flat_parameters(ctx.pools, parameters))
            embeddings = [tensor.detach().requires_grad_() for tensor in embeddings]
            # `cast` would cut the graph.
            on_map = [tensor.to(q.dtype) for tensor in ctx.shape.on_map(embeddings)]
        q, k, v = (tensor.detach() for tensor in pooled)
        relative = [tensor.detach() for tensor in on_map]
        gradients = _attend_backward(q, k, v, token, relative, grad, grad_token, ctx.shape)
        grad_tokens, grads, grads_on_map = gradients
        inputs = [*maps, *(tensor for tensor in parameters if tensor is not None), *embeddings]
        found = iter(torch.autograd.grad([*pooled, *on_map], inputs, [*grads, *grads_on_map]))
        grad_maps = [next(found) for _ in maps]
        grad_parameters = [None if tensor is None else next(found) for tensor in parameters]
        grad_embeddings = [next(found) for _ in embeddings]
        return None, None, None, *grad_tokens, *grad_maps, *grad_parameters, *grad_embeddings


def _pooled(maps: Sequence[Tensor], pools: Sequence[HeadPool]) -> list[Tensor]:
    return [pool.with_kernel_of(x.dtype)(x) for x, pool in zip(maps, pools, strict=True)]


def _split(tensors: Sequence[Any], num_parameters: int) -> tuple[Sequence[Any], Sequence[Any]]:
    """The pools' parameters, and the embeddings."""
    return tensors[:num_parameters], tensors[num_parameters:]


def _keys_and_values(
    k: Tensor, v: Tensor, token_k: Tensor | None, token_v: Tensor | None, shape: AttentionShape
) -> tuple[Tensor, Tensor]:
    """Windows (rows, columns, B, h, K, d) of scaled keys and of values, a class token's last."""
    keys, values = scaled_keys(k, shape), split_windows(v, shape)
    if token_k is None or token_v is None:
        return keys, values
    of_token = (1, 1, len(k), shape.heads, 1, -1)
    return (
        torch.cat([keys, shape.scale * token_k.view(of_token)], dim=4),
        torch.cat([values, token_v.view(of_token)], dim=4),
    )


def _token_weights(token_q: Tensor, keys: Tensor) -> Tensor:
    """(B·h, 1, d) queries and (1, 1, B, h, K, d) scaled keys to (B·h, 1, K) weights."""
    return torch.softmax(token_q @ keys.flatten(0, 3).transpose(1, 2), -1)


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    embeddings: Sequence[Tensor],
    shape: AttentionShape,
) -> Tensor:
    """Pooled queries attend to windows of keys and values, without gradients.

    Args:
        q: (B, Q_h, Q_w, C).
        keys: from :func:`scaled_keys`.
        values: from :func:`~mvitv2_det.fused.cpu.tiles.split_windows`.
        embeddings: R of Eq. 4 per axis, (Q_a, K_a, d), or none.

    Returns:
        (B, Q_h, Q_w, C).
    """
    output = torch.empty_like(q)
    by_heads, targets = shape.split_heads(q), shape.split_heads(output)
    logits = position_logits(by_heads, embeddings)
    weights_memory, output_memory = _Scratch(q), _Scratch(q)
    batch, height, width, _ = q.shape
    for tile in tiles_of(shape, batch, height, width):
        source, target = tile.view(by_heads), tile.view(targets)
        queries, window_keys = _flat(source), tile.view_windows(keys)
        weights = weights_memory.of(*queries.shape[:2], window_keys.shape[1])
        _attention_weights(queries, window_keys, logits, tile, shape, out=weights)
        attended = output_memory.of(*queries.shape)
        write_products(weights, tile.view_windows(values), attended)
        attended = attended.view(source.shape)
        if shape.residual:
            torch.add(source, attended, out=target)
        else:
            target.copy_(attended)
    return output


def _attend_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    token: Sequence[Tensor | None],
    embeddings: Sequence[Tensor],
    grad: Tensor,
    grad_token: Tensor | None,
    shape: AttentionShape,
) -> tuple[list[Tensor | None], list[Tensor], list[Tensor]]:
    """Gradients of a class token's q, k and v, of those of the map, and of the embeddings."""
    token_q, token_k, token_v = token
    keys, values = _keys_and_values(k, v, token_k, token_v, shape)
    gradients = _Gradients(shape.split_heads(q), keys, values, embeddings, shape)
    for tile in tiles_of(shape, *q.shape[:3]):
        gradients.add(tile, shape.split_heads(grad))
    grad_embeddings = position_logits_backward(
        gradients.logits, shape.split_heads(q), embeddings, gradients.queries
    )
    grad_tokens: list[Tensor | None] = [None, None, None]
    if token_q is not None and grad_token is not None:
        grad_tokens[0] = _token_backward(token_q, grad_token, keys, values, gradients)
        last_k, last_v = gradients.keys[..., -1:, :], gradients.values[..., -1:, :]
        grad_tokens[1:] = shape.scale * last_k.flatten(0, 3), last_v.flatten(0, 3)
    on_map = slice(math.prod(shape.window_kv))
    grad_k = merge_windows(gradients.keys[..., on_map, :], k.shape, shape, shape.scale)
    grad_v = merge_windows(gradients.values[..., on_map, :], v.shape, shape)
    return grad_tokens, [gradients.queries.flatten(3), grad_k, grad_v], grad_embeddings


def _token_backward(
    token_q: Tensor, grad: Tensor, keys: Tensor, values: Tensor, gradients: "_Gradients"
) -> Tensor:
    """Gradient of a class token's query; adds to those of the keys and values."""
    weights = _token_weights(token_q, keys)
    grad_logits = torch.ops.aten._softmax_backward_data(
        grad @ values.flatten(0, 3).transpose(1, 2), weights, -1, weights.dtype
    )
    gradients.values.flatten(0, 3).baddbmm_(weights.transpose(1, 2), grad)
    gradients.keys.flatten(0, 3).baddbmm_(grad_logits.transpose(1, 2), token_q)
    return grad_logits @ keys.flatten(0, 3)


class _Gradients:
    """Gradients of what :func:`attend` computes, summed over tiles.

    Attributes:
        queries: (B, Q_h, Q_w, h, d), without what the position logits give.
        keys, values: (rows, columns, B, h, K, d), of the scaled keys and of the values.
        logits: (B, Q_h, Q_w, h, K_a) for each axis.
    """

    def __init__(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        embeddings: Sequence[Tensor],
        shape: AttentionShape,
    ) -> None:
        self._q, self._keys, self._values, self._shape = q, keys, values, shape
        self._logits = position_logits(q, embeddings)
        self._weights_memory, self._grad_memory, self._query_memory = (
            _Scratch(q) for _ in range(3)
        )
        self.queries = torch.empty_like(q)
        self.keys, self.values = torch.empty_like(keys), torch.empty_like(values)
        self.logits = empty_logits(q, embeddings)

    def add(self, tile: Tile, grad: Tensor) -> None:
        """Adds those of a tile, from the gradient of the output (B, Q_h, Q_w, h, d)."""
        source, target = tile.view(grad), tile.view(self.queries)
        queries, grad_output = _flat(tile.view(self._q)), _flat(source)
        keys, values = tile.view_windows(self._keys), tile.view_windows(self._values)
        weights = self._weights_memory.of(*queries.shape[:2], keys.shape[1])
        _attention_weights(queries, keys, self._logits, tile, self._shape, out=weights)
        # The memory of the sums is not filled with zeros first: the first tile writes over it.
        beta = 0 if tile.is_first_of_window else 1
        grad_values, grad_keys = map(tile.view_windows, (self.values, self.keys))
        add_products(grad_values, weights.transpose(1, 2), grad_output, beta)
        grad_logits = self._grad_memory.of(*weights.shape)
        write_products(grad_output, values.transpose(1, 2), grad_logits)
        torch.ops.aten._softmax_backward_data.out(
            grad_logits, weights, -1, weights.dtype, grad_input=grad_logits
        )
        add_products(grad_keys, grad_logits.transpose(1, 2), queries, beta)
        grad_queries = self._query_memory.of(*queries.shape)
        write_products(grad_logits, keys, grad_queries)
        grad_queries = grad_queries.view(target.shape)
        if self._shape.residual:
            torch.add(source, grad_queries, out=target)
        else:
            target.copy_(grad_queries)
        by_places = _by_places(grad_logits, target, self._shape)
        for axis, along in enumerate(self.logits):
            torch.sum(by_places, 6 - axis, out=tile.view(along))


def scaled_keys(k: Tensor, shape: AttentionShape) -> Tensor:
    """Windows of the keys, (rows, columns, B, h, K, d), times the scale of the content logits."""
    return split_windows(k, shape, shape.scale)


def _attention_weights(
    queries: Tensor,
    keys: Tensor,
    logits: list[Tensor],
    tile: Tile,
    shape: AttentionShape,
    out: Tensor,
) -> None:
    """(N, r·c, d) queries and (N, K, d) scaled keys to (N, r·c, K) attention weights."""
    if logits:
        rows, columns = (tile.view(along) for along in logits)
        by_places = _by_places(out, rows, shape)
        out[..., math.prod(shape.window_kv) :].zero_()  # of a class token, if there is one
        torch.add(rows[..., None], columns[..., None, :], out=by_places)
        add_products(out, queries, keys.transpose(1, 2))
    else:
        write_products(queries, keys.transpose(1, 2), out)
    torch.softmax(out, -1, out=out)


def _by_places(logits: Tensor, tile: Tensor, shape: AttentionShape) -> Tensor:
    """(N, r·c, K) logits as (n, B, h, r, c, K_h, K_w), without that of a class token."""
    on_map = logits[..., : math.prod(shape.window_kv)]
    return on_map.view(*tile.shape[:5], *shape.window_kv)


def _flat(part: Tensor) -> Tensor:
    """(n, B, h, r, c, d) to (N, r·c, d), contiguous."""
    return part.reshape(-1, part.shape[3] * part.shape[4], part.shape[5])
