"""Position logits of whole maps against those of the reference path, window by window."""

import torch

from mvitv2_det.attention.position import axis_logits, relative_embedding
from mvitv2_det.fused.cpu.position_logits import (
    empty_logits,
    position_logits,
    position_logits_backward,
)

HEADS, CHANNELS, WINDOW = 3, 5, 4
KEYS = (2, 7)  # of a window, along its rows and columns


def inputs(height: int, width: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    q = torch.randn(2, height, width, HEADS, CHANNELS, dtype=torch.float64)
    embeddings = [torch.randn(WINDOW, keys, CHANNELS, dtype=torch.float64) for keys in KEYS]
    return q, embeddings


def plain(q: torch.Tensor, embeddings: list[torch.Tensor]) -> list[torch.Tensor]:
    """Eq. 4 token by token."""
    rows = torch.arange(q.shape[1]) % WINDOW
    columns = torch.arange(q.shape[2]) % WINDOW
    return [
        torch.einsum("bijhd,ikd->bijhk", q, embeddings[0][rows]),
        torch.einsum("bijhd,jkd->bijhk", q, embeddings[1][columns]),
    ]


def test_position_logits():
    """A map that windows do not divide; float64, to 1e-12."""
    q, embeddings = inputs(6, 9)
    for actual, expected in zip(position_logits(q, embeddings), plain(q, embeddings), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_of_one_window_they_are_the_reference_paths():
    q, _ = inputs(WINDOW, WINDOW)
    tables = [torch.randn(9, CHANNELS, dtype=torch.float64) for _ in KEYS]
    embeddings = [
        relative_embedding(table, WINDOW, keys) for table, keys in zip(tables, KEYS, strict=True)
    ]
    maps = q.permute(0, 3, 1, 2, 4).flatten(0, 1)  # (B·h, H, W, d)
    expected = axis_logits(maps, tables, KEYS)
    for actual, wanted in zip(position_logits(q, embeddings), expected, strict=True):
        actual = actual.permute(0, 3, 1, 2, 4).flatten(0, 1)
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


def test_gradients():
    """Against autograd through Eq. 4; what is in the gradient of q before stays in it."""
    q, embeddings = inputs(6, 9)
    leaves = [q.requires_grad_(), *(embedding.requires_grad_() for embedding in embeddings)]
    grads = empty_logits(q.detach(), embeddings)
    for grad in grads:
        grad.copy_(torch.randn_like(grad))
    expected = torch.autograd.grad(plain(q, embeddings), leaves, grads)
    before = torch.randn_like(q)
    grad_q = before.clone()
    with torch.no_grad():
        found = position_logits_backward(grads, q, embeddings, grad_q)
    for actual, wanted in zip([grad_q - before, *found], expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


def test_without_positions():
    q, _ = inputs(6, 9)
    assert position_logits(q, []) == [] == empty_logits(q, [])
