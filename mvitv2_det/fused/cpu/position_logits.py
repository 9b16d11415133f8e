"""Logits of decomposed relative positions, q · R of Eq. 4, of all queries of a map at once.

All queries in a row of the map meet the same R of the rows, and all in a column the same R of
the columns: one product for each row and column of the map, whatever the windows.

Axes: B images, H × W queries of h heads with d channels, K_a keys of a window along axis a,
A rows or columns of the map with M queries each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def position_logits(q: Tensor, embeddings: Sequence[Tensor], above: int = 0) -> list[Tensor]:
    """What position adds to the scores of each query, along each axis.

    Args:
        q: (B, H, W, h, d).
        embeddings: R of Eq. 4 per axis, (Q_a, K_a, d) with Q_a queries of a window, or none.
        above: rows of the whole map above this one, where it is a part.

    Returns:
        (B, H, W, h, K_a) for each axis, in any layout.
    """
    logits = []
    for axis, embedding in enumerate(embeddings):
        lines = _lines(q, axis)
        embedding = embedding[_places(embedding, len(lines), axis, above)]
        # Of this product and its transpose, the one with few columns is the slower by half.
        products = (embedding @ lines.transpose(1, 2)).transpose(1, 2).contiguous()
        logits.append(_unlines(products, q.shape, axis))
    return logits


def position_logits_backward(
    grads: Sequence[Tensor], q: Tensor, embeddings: Sequence[Tensor], grad_q: Tensor
) -> list[Tensor]:
    """Adds to the gradient of q that of its logits; returns those of the embeddings.

    Args:
        grads: (B, H, W, h, K_a) for each axis.
        q: (B, H, W, h, d), a whole map.
        embeddings: (Q_a, K_a, d) for each axis.
        grad_q: of q's shape, added to.
    """
    grad_embeddings = []
    for axis, (grad, embedding) in enumerate(zip(grads, embeddings, strict=True)):
        grad_lines = _lines(grad, axis)
        places = _places(embedding, len(grad_lines), axis)
        grad_q += _unlines(grad_lines @ embedding[places], q.shape, axis)
        grad_places = grad_lines.transpose(1, 2) @ _lines(q, axis)
        grad_embeddings.append(torch.zeros_like(embedding).index_add_(0, places, grad_places))
    return grad_embeddings


def empty_logits(q: Tensor, embeddings: Sequence[Tensor]) -> list[Tensor]:
    """Memory for logits (B, H, W, h, K_a), laid out as products for each row and column are."""
    logits = []
    for axis, embedding in enumerate(embeddings):
        lines = q.new_empty(*_lines(q, axis).shape[:2], embedding.shape[1])
        logits.append(_unlines(lines, q.shape, axis))
    return logits


def _places(embedding: Tensor, lines: int, axis: int, above: int = 0) -> Tensor:
    """(A): the place of each row or column in its window."""
    first = above if axis == 0 else 0
    return torch.arange(first, first + lines, device=embedding.device) % len(embedding)


def _lines(x: Tensor, axis: int) -> Tensor:
    """(B, H, W, h, X) to (A, M, X): all that is in one row, or in one column, together."""
    return x.movedim(1 + axis, 0).flatten(1, 3)


def _unlines(lines: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """The inverse of :func:`_lines` for a map of that shape, whatever its channels."""
    others = [size for dim, size in enumerate(shape[:4]) if dim != 1 + axis]
    return lines.unflatten(1, others).movedim(0, 1 + axis)
