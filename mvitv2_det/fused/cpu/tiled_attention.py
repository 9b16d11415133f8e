"""Attention in strips of query rows whose scores stay in the cache, for the CPU.

Maps are channels-last with the heads side by side, from the projection to the output: no layout
copies around the pooling. Kept for backward: the maps that come in, alone; those are the projected
ones, or keys and values convolved already (:mod:`.folded_pooling`). Pooled and normalised maps and scores
are computed again.

Axes: B images, H × W tokens, C = h·d channels of h heads, n windows side by side,
N = n·B·h maps of one row of windows, r × c queries of a strip, K = Kh·Kw keys of a window.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..head_pool import HeadPool
from .position_logits import empty_logits, position_logits, position_logits_backward
from .tiles import Layout, Strip, unwindows, windows_of


def pooled_attention(
    maps: tuple[Tensor, Tensor, Tensor],
    pools: tuple[HeadPool, HeadPool, HeadPool],
    embeddings: tuple[Tensor, ...],
    layout: Layout,
) -> Tensor:
    """Pools and normalises q, k and v, attends in windows, and adds the pooled q.

    Args:
        maps: q, k and v before pooling, (B, H, W, C) each, each with its own H and W.
        pools: what pools each of them.
        embeddings: R of Eq. 4 per axis, (Q_a, K_a, d), or none.
        layout: heads, scale, windows and residual.

    Returns:
        (B, H / stride_q, W / stride_q, C).
    """
    parameters = [tensor for pool in pools for tensor in pool.parameters]
    return _PooledAttention.apply(layout, pools, *maps, *embeddings, *parameters)


class _Scratch:
    """Memory that strip after strip writes to: fresh memory costs as much as what fills it."""

    def __init__(self, like: Tensor) -> None:
        self._memory = like.new_empty(0)

    def of(self, *shape: int) -> Tensor:
        """A tensor of that shape; what was handed out before is written over."""
        size = math.prod(shape)
        if len(self._memory) < size:
            self._memory = self._memory.new_empty(size)
        return self._memory[:size].view(shape)


class _PooledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layout, pools, q, k, v, *tensors):
        ctx.layout, ctx.pools = layout, pools
        ctx.save_for_backward(q, k, v, *tensors)
        *_, embeddings, parameters = _split((q, k, v, *tensors))
        q, k, v = _pool((q, k, v), pools, parameters)
        return attend(q, scaled_keys(k, layout), windows_of(v, layout), embeddings, layout)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *maps, embeddings, parameters = _split(ctx.saved_tensors)
        with torch.enable_grad():
            maps = [tensor.detach().requires_grad_() for tensor in maps]
            parameters = [
                None if tensor is None else tensor.detach().requires_grad_()
                for tensor in parameters
            ]
            pooled = _pool(maps, ctx.pools, parameters)
        detached = [tensor.detach() for tensor in pooled]
        grads, grad_embeddings = _attend_backward(*detached, embeddings, grad, ctx.layout)
        inputs = [*maps, *(tensor for tensor in parameters if tensor is not None)]
        found = iter(torch.autograd.grad(pooled, inputs, grads))
        grad_maps = [next(found) for _ in maps]
        grad_parameters = [None if tensor is None else next(found) for tensor in parameters]
        return None, None, *grad_maps, *grad_embeddings, *grad_parameters


def _split(tensors: tuple[Tensor | None, ...]) -> tuple:
    """q, k, v, the embeddings, and the pools' parameters: three each for q, k and v."""
    return *tensors[:3], tensors[3:-9], tensors[-9:]


def _pool(maps, pools: tuple[HeadPool, ...], parameters) -> list[Tensor]:
    return [
        pool.run(tensor, *parameters[3 * index : 3 * index + 3])
        for index, (tensor, pool) in enumerate(zip(maps, pools, strict=True))
    ]


def attend(
    q: Tensor, keys: Tensor, values: Tensor, embeddings, layout: Layout, above: int = 0
) -> Tensor:
    """Pooled queries attend to windows of keys and values, without gradients.

    Args:
        q: (B, Qh, Qw, C), a map or some rows of one.
        keys: from :func:`scaled_keys`.
        values: from :func:`windows_of`.
        embeddings: R of Eq. 4 per axis, (Q_a, K_a, d), or none.
        above: rows of the map above those of ``q``.

    Returns:
        (B, Qh, Qw, C).
    """
    output = torch.empty_like(q)
    by_heads, targets = layout.by_heads(q), layout.by_heads(output)
    logits = position_logits(by_heads, embeddings, above)
    score_memory, output_memory = _Scratch(q), _Scratch(q)
    for strip in layout.strips(*q.shape[:3], above):
        source, target = strip.of_map(by_heads), strip.of_map(targets)
        queries, window_keys = _flat(source), strip.of_windows(keys)
        scores = score_memory.of(*queries.shape[:2], window_keys.shape[1])
        _attention_weights(queries, window_keys, logits, strip, layout, out=scores)
        attended = output_memory.of(*queries.shape)
        torch.bmm(scores, strip.of_windows(values), out=attended)
        attended = attended.view(source.shape)
        if layout.residual:
            torch.add(source, attended, out=target)
        else:
            target.copy_(attended)
    return output


def _attend_backward(
    q: Tensor, k: Tensor, v: Tensor, embeddings, grad: Tensor, layout: Layout
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of q, k and v, and of the embeddings."""
    keys, values = scaled_keys(k, layout), windows_of(v, layout)
    gradients = _Gradients(layout.by_heads(q), keys, values, embeddings, layout)
    for strip in layout.strips(*q.shape[:3]):
        gradients.add(strip, layout.by_heads(grad))
    grad_embeddings = position_logits_backward(
        gradients.logits, layout.by_heads(q), embeddings, gradients.queries
    )
    grad_k = unwindows(gradients.keys, k.shape, layout, layout.scale)
    grad_v = unwindows(gradients.values, v.shape, layout)
    return [gradients.queries.flatten(3), grad_k, grad_v], grad_embeddings


class _Gradients:
    """Gradients of what :func:`attend` computes, summed over strips.

    Attributes:
        queries: (B, Qh, Qw, h, d), without what the position logits give.
        keys, values: (rows, columns, B, h, K, d), of the scaled keys and of the values.
        logits: (B, Qh, Qw, h, K_a) for each axis.
    """

    def __init__(self, q: Tensor, keys: Tensor, values: Tensor, embeddings, layout: Layout) -> None:
        self._q, self._keys, self._values, self._layout = q, keys, values, layout
        self._logits = position_logits(q, embeddings)
        self._scratch = [_Scratch(q) for _ in range(3)]
        self.queries = torch.empty_like(q)
        self.keys, self.values = torch.empty_like(keys), torch.empty_like(values)
        self.logits = empty_logits(q, embeddings)

    def add(self, strip: Strip, grad: Tensor) -> None:
        """Adds those of a strip, from the gradient of the output (B, Qh, Qw, h, d)."""
        score_memory, grad_memory, query_memory = self._scratch
        source, target = strip.of_map(grad), strip.of_map(self.queries)
        queries, grad_output = _flat(strip.of_map(self._q)), _flat(source)
        keys, values = strip.of_windows(self._keys), strip.of_windows(self._values)
        weights = score_memory.of(*queries.shape[:2], keys.shape[1])
        _attention_weights(queries, keys, self._logits, strip, self._layout, out=weights)
        kept = 0 if strip.opens else 1  # of what the memory of the sums holds
        strip.of_windows(self.values).baddbmm_(weights.transpose(1, 2), grad_output, beta=kept)
        grad_scores = grad_memory.of(*weights.shape)
        torch.bmm(grad_output, values.transpose(1, 2), out=grad_scores)
        torch.ops.aten._softmax_backward_data.out(
            grad_scores, weights, -1, weights.dtype, grad_input=grad_scores
        )
        strip.of_windows(self.keys).baddbmm_(grad_scores.transpose(1, 2), queries, beta=kept)
        grad_queries = query_memory.of(*queries.shape)
        torch.bmm(grad_scores, keys, out=grad_queries)
        grad_queries = grad_queries.view(target.shape)
        if self._layout.residual:
            torch.add(source, grad_queries, out=target)
        else:
            target.copy_(grad_queries)
        by_places = grad_scores.view(*target.shape[:5], *self._layout.window_kv)
        for axis, along in enumerate(self.logits):
            torch.sum(by_places, 6 - axis, out=strip.of_map(along))


def scaled_keys(k: Tensor, layout: Layout) -> Tensor:
    """Windows of the keys, (rows, columns, B, h, K, d), times the scale of the content logits."""
    return windows_of(k, layout, layout.scale)


def _attention_weights(
    queries: Tensor, keys: Tensor, logits: list[Tensor], strip: Strip, layout: Layout, out: Tensor
) -> None:
    """(N, r·c, d) queries and (N, K, d) scaled keys to (N, r·c, K) attention weights."""
    if logits:
        rows, columns = (strip.of_map(along) for along in logits)
        by_places = out.view(*rows.shape[:5], *layout.window_kv)
        torch.add(rows[..., None], columns[..., None, :], out=by_places)
        out.baddbmm_(queries, keys.transpose(1, 2))  # adds to it as it goes, at no cost
    else:
        torch.bmm(queries, keys.transpose(1, 2), out=out)
    torch.softmax(out, -1, out=out)


def _flat(part: Tensor) -> Tensor:
    """(n, B, h, r, c, d) to (N, r·c, d), contiguous."""
    return part.reshape(-1, part.shape[3] * part.shape[4], part.shape[5])
