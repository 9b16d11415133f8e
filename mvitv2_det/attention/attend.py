"""The softmax product of attention: Attn(Q, K, V) of Eqs. 1 and 3.

Axes: N = batch × heads (× windows), Q_a queries and K_a keys along axis a, D channels per head.
"""

from collections.abc import Sequence

from torch import Tensor


def attention_logits(q: Tensor, k: Tensor, scale: float, terms: Sequence[Tensor] = ()) -> Tensor:
    """Logits of every query and key, scale · q kᵀ + E.

    Args:
        q: (N, Q_1, …, Q_n, D).
        k: (N, K_1, …, K_n, D).
        scale: factor of the content logits, D^-½. The terms are not scaled: the released tables
            are trained for E itself.
        terms: summands of E, each of a shape that broadcasts to the result's; from
            :mod:`~mvitv2_det.attention.position` and :mod:`~mvitv2_det.attention.windows`.

    Returns:
        (N, Q_1, …, Q_n, K_1, …, K_n).
    """
    logits = (q.flatten(1, -2) * scale) @ k.flatten(1, -2).transpose(1, 2)
    logits = logits.reshape(-1, *q.shape[1:-1], *k.shape[1:-1])
    for term in terms:
        logits = logits + term
    return logits


def softmax_over_keys(logits: Tensor) -> Tensor:
    """The attention map A of logits (N, Q_1, …, Q_n, K_1, …, K_n), of the same shape."""
    first_key_axis = (logits.dim() + 1) // 2
    return logits.flatten(first_key_axis).softmax(dim=-1).reshape(logits.shape)


def weighted_values(attention: Tensor, v: Tensor) -> Tensor:
    """A · V: of A (N, Q_1, …, Q_n, K_1, …, K_n) and v (N, K_1, …, K_n, D), (N, Q_1, …, Q_n, D)."""
    axes = v.dim() - 2
    weights = attention.flatten(1 + axes).flatten(1, axes)
    attended = weights @ v.flatten(1, -2)
    return attended.reshape(-1, *attention.shape[1 : 1 + axes], v.shape[-1])
