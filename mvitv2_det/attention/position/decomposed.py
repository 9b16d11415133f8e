"""Decomposed relative positions: R = R_h + R_w, one table per axis (Eq. 4).

Axes: N = batch × heads (× windows), Q_a queries and K_a keys along axis a (for images
a is the height, then the width), L_a table rows, D channels per head.

The terms are those of appendix A.4. Since R is a sum over axes, no term ever needs R of every
query and key: the query's is the same for all keys that share a row or a column, the key's for
all queries that do, and the value's needs the attention map only summed over the other axis.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .tables import distances, relative_index, resize_table, table_length

TABLES = ("rel_pos_h", "rel_pos_w")

_AXIS_LETTERS = "xyz"


def table_shape(size: int, stride_q: int, stride_kv: int, head_dim: int) -> tuple[int, int]:
    """(L, D) of each table for a square grid of ``size`` tokens before pooling."""
    return table_length(size, stride_q, stride_kv), head_dim


def relative_embedding(table: Tensor, query_size: int, key_size: int) -> Tensor:
    """R of Eq. 4 along one axis, (Q, K, D), from its table (L, D)."""
    table = resize_table(table, *distances([query_size], [key_size]))
    return table[relative_index(query_size, key_size, device=table.device)]


def axis_logits(q: Tensor, tables: Sequence[Tensor], key_size: Sequence[int]) -> list[Tensor]:
    """The terms of E(rel) in Eq. 3, one per axis: each query times R along that axis.

    Args:
        q: (N, Q_1, …, Q_n, D), unscaled.
        tables: one (L_a, D) per axis, or none at all.
        key_size: (K_1, …, K_n).

    Returns:
        one (N, Q_1, …, Q_n, K_a) per table.
    """
    if not tables:
        return []
    query_size = q.shape[1:-1]
    axes = _AXIS_LETTERS[: len(query_size)]
    logits = []
    for axis, table, queries, keys in zip(axes, tables, query_size, key_size, strict=True):
        embedding = relative_embedding(table, queries, keys)
        logits.append(torch.einsum(f"n{axes}d,{axis}kd->n{axes}k", q, embedding))
    return logits


def query_terms(q: Tensor, tables: Sequence[Tensor], key_size: Sequence[int]) -> list[Tensor]:
    """E(rel q) = Q · R, as :func:`axis_logits` spread out for the scores.

    Returns:
        one (N, Q_1, …, Q_n, 1, …, K_a, …, 1) per axis.
    """
    return [
        logits.reshape(*logits.shape[:-1], *_only(axis, key_size))
        for axis, logits in enumerate(axis_logits(q, tables, key_size))
    ]


def key_terms(k: Tensor, tables: Sequence[Tensor], query_size: Sequence[int]) -> list[Tensor]:
    """E(rel k) = R · K.

    Args:
        k: (N, K_1, …, K_n, D).
        tables: one (L_a, D) per axis, or none at all.
        query_size: (Q_1, …, Q_n).

    Returns:
        one (N, 1, …, Q_a, …, 1, K_1, …, K_n) per axis.
    """
    if not tables:
        return []
    key_size = k.shape[1:-1]
    axes = _AXIS_LETTERS[: len(key_size)]
    terms = []
    for position, (axis, table) in enumerate(zip(axes, tables, strict=True)):
        embedding = relative_embedding(table, query_size[position], key_size[position])
        logits = torch.einsum(f"n{axes}d,q{axis}d->nq{axes}", k, embedding)
        terms.append(logits.reshape(-1, *_only(position, query_size), *key_size))
    return terms


def value_term(attention: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """E(rel v) = Σ_j A_ij R_ij.

    Args:
        attention: A, (N, Q_1, …, Q_n, K_1, …, K_n), summing to 1 over the keys.
        tables: one (L_a, D) per axis.

    Returns:
        (N, Q_1, …, Q_n, D).
    """
    count = len(tables)
    axes = _AXIS_LETTERS[:count]
    terms = []
    for position, (axis, table) in enumerate(zip(axes, tables, strict=True)):
        others = [1 + count + other for other in range(count) if other != position]
        summed = attention.sum(others) if others else attention
        embedding = relative_embedding(table, attention.shape[1 + position], summed.shape[-1])
        terms.append(torch.einsum(f"n{axes}k,{axis}kd->n{axes}d", summed, embedding))
    return sum(terms[1:], terms[0])


def _only(axis: int, size: Sequence[int]) -> list[int]:
    """The shape that broadcasts over all axes but one."""
    return [side if other == axis else 1 for other, side in enumerate(size)]
