"""Logits of decomposed relative positions, q · R of Eq. 4, of all queries of a map at once.

All queries in a row of the map meet the same R of the rows, and all in a column the same R of
the columns: one product for each row and column of the map, whatever the windows.

Axes: B images, H × W queries of h heads with d channels, K_a keys of a window along axis a,
A rows or columns of the map with M queries each, X any number of channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def position_logits(q: Tensor, embeddings: Sequence[Tensor]) -> list[Tensor]:
    """What position adds to the logits of each query, along each axis.

    Args:
        q: (B, H, W, h, d).
        embeddings: R of Eq. 4 per axis, (Q_a, K_a, d) with Q_a queries of a window, or none.

    Returns:
        (B, H, W, h, K_a) for each axis, in any layout.
    """
    logits = []
    for axis, embedding in enumerate(embeddings):
        grouped = _group(q, axis)
        embedding = embedding[_places(embedding, len(grouped))]
        # Of this product and its transpose, the one with few columns is the slower by half.
        products = (embedding @ grouped.transpose(1, 2)).transpose(1, 2).contiguous()
        logits.append(_ungroup(products, q.shape, axis))
    return logits


def position_logits_backward(
    grads: Sequence[Tensor], q: Tensor, embeddings: Sequence[Tensor], grad_q: Tensor
) -> list[Tensor]:
    """Adds the gradient of the logits to that of q; returns those of the embeddings.

    Args:
        grads: gradients of the logits, (B, H, W, h, K_a) for each axis.
        q: (B, H, W, h, d).
        embeddings: (Q_a, K_a, d) for each axis.
        grad_q: the gradient of q so far, of its shape; added to in place.
    """
    grad_embeddings = []
    for axis, (grad, embedding) in enumerate(zip(grads, embeddings, strict=True)):
        grouped = _group(grad, axis)
        places = _places(embedding, len(grouped))
        grad_q += _ungroup(grouped @ embedding[places], q.shape, axis)
        grad_places = grouped.transpose(1, 2) @ _group(q, axis)
        grad_embeddings.append(torch.zeros_like(embedding).index_add_(0, places, grad_places))
    return grad_embeddings


def empty_logits(q: Tensor, embeddings: Sequence[Tensor]) -> list[Tensor]:
    """Memory for logits (B, H, W, h, K_a), laid out as products for each row and column are."""
    logits = []
    for axis, embedding in enumerate(embeddings):
        products = q.new_empty(*_group(q, axis).shape[:2], embedding.shape[1])
        logits.append(_ungroup(products, q.shape, axis))
    return logits


def _places(embedding: Tensor, count: int) -> Tensor:
    """(A): the place of each row or column in its window."""
    return torch.arange(count, device=embedding.device) % len(embedding)


def _group(x: Tensor, axis: int) -> Tensor:
    """(B, H, W, h, X) to (A, M, X): the queries of each row, or of each column, together."""
    return x.movedim(1 + axis, 0).flatten(1, 3)


def _ungroup(grouped: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """The inverse of :func:`_group` for a map of that shape, with any number of channels."""
    others = [size for dim, size in enumerate(shape[:4]) if dim != 1 + axis]
    return grouped.unflatten(1, others).movedim(0, 1 + axis)
