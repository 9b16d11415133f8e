"""The softmax product of attention: Attn(Q, K, V) of Eq. 3.

Axes: N maps (batch × heads, or windows), Q_a queries and K_a keys along axis a, D channels
per head.
"""

from collections.abc import Sequence

from torch import Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, scale: float, axis_logits: Sequence[Tensor] = ()
) -> Tensor:
    """Softmax(scale · q kᵀ + E) v, with E the sum of position terms along single axes.

    Args:
        q: (N, Q_1, …, Q_n, D).
        k, v: (N, K_1, …, K_n, D).
        scale: factor of the content logits, D^-½. Position logits are not scaled: they come
            ready from :func:`~mvitv2_det.attention.position.axis_logits`.
        axis_logits: nothing, or one (N, Q_1, …, Q_n, K_a) per axis.

    Returns:
        (N, Q_1, …, Q_n, D).
    """
    scores = (q.flatten(1, -2) * scale) @ k.flatten(1, -2).transpose(1, 2)
    if axis_logits:
        scores = _add_axis_logits(scores, axis_logits, q.shape[1:-1], k.shape[1:-1])
    return (scores.softmax(dim=-1) @ v.flatten(1, -2)).reshape(q.shape)


def _add_axis_logits(
    scores: Tensor,
    axis_logits: Sequence[Tensor],
    query_size: Sequence[int],
    key_size: Sequence[int],
) -> Tensor:
    """Adds each axis' logits, the same for all keys that share their place on that axis."""
    summed = scores.reshape(-1, *query_size, *key_size)
    for axis, logits in enumerate(axis_logits):
        only_this_axis = [1] * len(key_size)
        only_this_axis[axis] = key_size[axis]
        summed = summed + logits.reshape(-1, *query_size, *only_this_axis)
    return summed.reshape(scores.shape)
