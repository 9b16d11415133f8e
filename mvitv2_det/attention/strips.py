"""Attention in strips of query rows whose scores stay in the cache, for the CPU.

Maps are channels-last with the heads side by side, from the projection to the output: no layout
copies around the pooling. Kept for backward: the projected maps before pooling, alone. Pooled and
normalised maps and scores are computed again.

Axes: B images, H × W tokens, C = h·d channels of h heads, n windows side by side,
N = n·B·h maps of one row of windows, r × c queries of a strip, K = Kh·Kw keys of a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .pooling import HeadPool

_SCORES = 2_000_000  # of a strip: 8 MB, so that they are still in the cache when they are read


@dataclass(frozen=True)
class Strip:
    """Query rows of windows side by side.

    Attributes:
        rows, columns: where on the map.
        window_row, windows: whose keys: the row of windows, and a slice along it.
        rows_inside: the rows, counted within the window.
        width: columns of each of the windows.
    """

    rows: slice
    columns: slice
    window_row: int
    windows: slice
    rows_inside: slice
    width: int


@dataclass(frozen=True)
class Layout:
    """What attention computes, apart from tensors.

    Attributes:
        heads: h.
        scale: of the content logits.
        window_q, window_kv: height and width of the windows in queries and in keys; the whole
            map where attention is global.
        residual: whether the queries are added to the output.
    """

    heads: int
    scale: float
    window_q: tuple[int, int]
    window_kv: tuple[int, int]
    residual: bool

    def strips(self, batch: int, height: int, width: int, above: int = 0) -> Iterator[Strip]:
        """Strips that cover a query map; windows that reach over its border are cut off.

        Args:
            batch, height, width: of the map.
            above: rows of the whole map above this one, where it is a part.
        """
        window_height, window_width = self.window_q
        keys = self.window_kv[0] * self.window_kv[1]
        for first, count, columns in _window_groups(width, window_width):
            row_scores = count * batch * self.heads * columns * keys
            step = max(_SCORES // row_scores, 1)
            start = first * window_width
            row = 0
            while row < height:
                window_row, inside = divmod(above + row, window_height)
                end = min(row + min(step, window_height - inside), height)
                yield Strip(
                    slice(row, end),
                    slice(start, start + count * columns),
                    window_row,
                    slice(first, first + count),
                    slice(inside, inside + end - row),
                    columns,
                )
                row = end


def _window_groups(size: int, window: int) -> Iterator[tuple[int, int, int]]:
    """First window, number of windows and their width: the whole ones, then one cut off."""
    whole, rest = divmod(size, window)
    if whole:
        yield 0, whole, window
    if rest:
        yield whole, 1, rest


def pooled_attention(
    maps: tuple[Tensor, Tensor, Tensor],
    pools: tuple[HeadPool, HeadPool, HeadPool],
    embeddings: tuple[Tensor, ...],
    layout: Layout,
) -> Tensor:
    """Pools and normalises q, k and v, attends in windows, and adds the pooled q.

    Args:
        maps: q, k and v before pooling, (B, H, W, C) each.
        pools: what pools each of them.
        embeddings: R of Eq. 4 per axis, (Q_a, K_a, d), or none.

    Returns:
        (B, H / stride_q, W / stride_q, C).
    """
    parameters = [tensor for pool in pools for tensor in pool.parameters]
    return _PooledAttention.apply(layout, pools, *maps, *embeddings, *parameters)


class _PooledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, layout, pools, q, k, v, *tensors):
        ctx.layout, ctx.pools = layout, pools
        ctx.save_for_backward(q, k, v, *tensors)
        *_, embeddings, parameters = _split((q, k, v, *tensors))
        q, k, v = _pool((q, k, v), pools, parameters)
        return attend(q, windows_of(k, layout), windows_of(v, layout), embeddings, layout)

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
        keys, values: from :func:`windows_of`.
        embeddings: R of Eq. 4 per axis, (Q_a, K_a, d), or none.
        above: rows of the map above those of ``q``.

    Returns:
        (B, Qh, Qw, C).
    """
    output = torch.empty_like(q)
    heads = layout.heads
    for strip in layout.strips(*q.shape[:3], above):
        queries = _cut(q, strip, heads)
        scores = _probabilities(queries, _of(keys, strip), embeddings, strip, layout)
        attended = (scores @ _of(values, strip)).view(queries.shape)
        target, source = _view(output, strip, heads), attended.view(_view(q, strip, heads).shape)
        if layout.residual:
            torch.add(_view(q, strip, heads), source, out=target)
        else:
            target.copy_(source)
    return output


def _attend_backward(
    q: Tensor, k: Tensor, v: Tensor, embeddings, grad: Tensor, layout: Layout
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of q, k and v, and of the embeddings."""
    heads = layout.heads
    keys, values = windows_of(k, layout), windows_of(v, layout)
    grad_q, grad_keys, grad_values = (
        torch.empty_like(q),
        torch.zeros_like(keys),
        torch.zeros_like(values),
    )
    grad_embeddings = [torch.zeros_like(embedding) for embedding in embeddings]
    for strip in layout.strips(*q.shape[:3]):
        queries, grad_output = _cut(q, strip, heads), _cut(grad, strip, heads).flatten(1, 2)
        window_keys, flat_queries = _of(keys, strip), queries.flatten(1, 2)
        scores = _probabilities(queries, window_keys, embeddings, strip, layout)
        _of(grad_values, strip).baddbmm_(scores.transpose(1, 2), grad_output)
        grad_scores = grad_output @ _of(values, strip).transpose(1, 2)
        torch.ops.aten._softmax_backward_data.out(
            grad_scores, scores, -1, scores.dtype, grad_input=grad_scores
        )
        _of(grad_keys, strip).baddbmm_(
            grad_scores.transpose(1, 2), flat_queries, alpha=layout.scale
        )
        grad_queries = torch.empty_like(flat_queries)
        grad_queries.baddbmm_(grad_scores, window_keys, beta=0, alpha=layout.scale)
        grad_queries = grad_queries.view(queries.shape)
        for axis, embedding in enumerate(embeddings):
            along = grad_scores.view(*queries.shape[:3], *layout.window_kv).sum(4 - axis)
            _add_axis_gradient(
                axis, along, queries, embedding, grad_embeddings[axis], strip, grad_queries
            )
        target = _view(grad_q, strip, heads)
        if layout.residual:
            torch.add(_view(grad, strip, heads), grad_queries.view(target.shape), out=target)
        else:
            target.copy_(grad_queries.view(target.shape))
    grad_k, grad_v = (_unwindows(grad, k.shape, layout) for grad in (grad_keys, grad_values))
    return [grad_q, grad_k, grad_v], grad_embeddings


def _probabilities(
    queries: Tensor, keys: Tensor, embeddings, strip: Strip, layout: Layout
) -> Tensor:
    """(N, r, c, d) queries and (N, K, d) keys to (N, r·c, K) attention weights."""
    flat = queries.flatten(1, 2)
    scores = flat.new_empty(*flat.shape[:2], keys.shape[1])
    scores.baddbmm_(flat, keys.transpose(1, 2), beta=0, alpha=layout.scale)
    if embeddings:
        summed = scores.view(*queries.shape[:3], *layout.window_kv)
        rows, columns = (
            _of_strip(axis, embedding, strip) for axis, embedding in enumerate(embeddings)
        )
        summed += (queries @ rows.transpose(1, 2))[..., None]
        along = queries.transpose(1, 2) @ columns.transpose(1, 2)
        summed += along.transpose(1, 2)[..., None, :]
    return torch.softmax(scores, -1, out=scores)


def _add_axis_gradient(
    axis: int,
    along: Tensor,
    queries: Tensor,
    embedding: Tensor,
    grad_embedding: Tensor,
    strip: Strip,
    grad_queries: Tensor,
) -> None:
    """Adds what (N, r, c, K_a) gradients of an axis' logits give its R and the queries."""
    along, queries, grad_queries = (
        tensor.permute(1, 0, 2, 3) if axis == 0 else tensor.permute(2, 0, 1, 3)
        for tensor in (along, queries, grad_queries)
    )
    flat = along.flatten(1, 2)
    _of_strip(axis, grad_embedding, strip).baddbmm_(flat.transpose(1, 2), queries.flatten(1, 2))
    grad_queries += (flat @ _of_strip(axis, embedding, strip)).view(grad_queries.shape)


def _of_strip(axis: int, embedding: Tensor, strip: Strip) -> Tensor:
    return embedding[strip.rows_inside if axis == 0 else slice(strip.width)]


def _view(x: Tensor, strip: Strip, heads: int) -> Tensor:
    """The strip of a (B, H, W, C) map as (n, B, h, r, c, d)."""
    part = x[:, strip.rows, strip.columns]
    part = part.unflatten(-1, (heads, -1)).unflatten(2, (-1, strip.width))
    return part.permute(2, 0, 4, 1, 3, 5)


def _cut(x: Tensor, strip: Strip, heads: int) -> Tensor:
    """The strip of a (B, H, W, C) map as (N, r, c, d)."""
    return _view(x, strip, heads).flatten(0, 2)


def _of(windows: Tensor, strip: Strip) -> Tensor:
    """The windows of a strip, (N, K, d)."""
    return windows[strip.window_row, strip.windows].flatten(0, 2)


def windows_of(x: Tensor, layout: Layout) -> Tensor:
    """(B, H, W, C) keys or values to (rows, columns, B, h, K, d) windows, padded with zeros."""
    height, width = layout.window_kv
    x = F.pad(x, (0, 0, 0, -x.shape[2] % width, 0, -x.shape[1] % height))
    x = x.unflatten(3, (layout.heads, -1)).unflatten(2, (-1, width)).unflatten(1, (-1, height))
    return x.permute(1, 3, 0, 5, 2, 4, 6).flatten(4, 5).contiguous()


def _unwindows(windows: Tensor, shape: torch.Size, layout: Layout) -> Tensor:
    """The inverse of :func:`windows_of`, without the padding."""
    x = windows.unflatten(4, layout.window_kv).permute(2, 0, 4, 1, 5, 3, 6)
    return x.flatten(5, 6).flatten(3, 4).flatten(1, 2)[:, : shape[1], : shape[2]]
