"""The softmax product of attention: Attn(Q, K, V) of Eq. 3.

Axes: N maps (batch × heads, or windows), Q_a queries and K_a keys along axis a, D channels
per head.
"""

from collections.abc import Callable, Sequence

from torch import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    terms: Sequence[Tensor] = (),
    value_term: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Softmax(scale · q kᵀ + E) v, with E the sum of position terms and masks.

    Args:
        q: (N, Q_1, …, Q_n, D).
        k, v: (N, K_1, …, K_n, D).
        scale: factor of the content logits, D^-½. The terms are not scaled: as in the reference,
            tables are trained for E itself.
        terms: of E, each of a shape that broadcasts to (N, Q_1, …, Q_n, K_1, …, K_n); from
            :mod:`~mvitv2_det.attention.position` and :mod:`~mvitv2_det.attention.windows`.
        value_term: makes the values' position term (N, Q_1, …, Q_n, D) from the attention map
            (N, Q_1, …, Q_n, K_1, …, K_n).

    Returns:
        (N, Q_1, …, Q_n, D).
    """
    maps_of_pairs = (-1, *q.shape[1:-1], *k.shape[1:-1])
    scores = (q.flatten(1, -2) * scale) @ k.flatten(1, -2).transpose(1, 2)
    if terms:
        biased = scores.reshape(maps_of_pairs)
        for term in terms:
            biased = biased + term
        scores = biased.reshape(scores.shape)
    attention = scores.softmax(dim=-1)
    attended = (attention @ v.flatten(1, -2)).reshape(q.shape)
    if value_term is None:
        return attended
    return attended + value_term(attention.reshape(maps_of_pairs))
