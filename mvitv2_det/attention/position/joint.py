"""Joint relative positions: one table over all axes at once, row (3) of Table 6.

Axes: N = batch × heads (× windows), Q_a queries and K_a keys along axis a, L_a table rows,
D channels per head.

R of every query and key is computed, (Q, K, D): it does not factor, which is why the paper
decomposes it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .tables import distances, relative_index, resize_table, table_length

TABLES = ("rel_pos_joint",)


def table_shape(size: int, stride_q: int, stride_kv: int, head_dim: int) -> tuple[int, int, int]:
    """(L_h, L_w, D) of the table for a square grid of ``size`` tokens before pooling."""
    length = table_length(size, stride_q, stride_kv)
    return length, length, head_dim


def relative_embedding(table: Tensor, query_size: Sequence[int], key_size: Sequence[int]) -> Tensor:
    """R, (Q, K, D) with all axes' queries and all axes' keys in row-major order.

    Args:
        table: (L_1, …, L_n, D).
        query_size, key_size: (Q_1, …, Q_n) and (K_1, …, K_n).
    """
    table = resize_table(table, *distances(query_size, key_size))
    count = len(query_size)
    index = []
    for axis, (queries, keys) in enumerate(zip(query_size, key_size, strict=True)):
        shape = [1] * (2 * count)
        shape[axis], shape[count + axis] = queries, keys
        index.append(relative_index(queries, keys, device=table.device).reshape(shape))
    return table[tuple(index)].flatten(count, -2).flatten(0, count - 1)


def query_terms(q: Tensor, tables: Sequence[Tensor], key_size: Sequence[int]) -> list[Tensor]:
    """E(rel q) = Q · R: of q (N, Q_1, …, Q_n, D), one (N, Q_1, …, Q_n, K_1, …, K_n)."""
    return _terms("nqd,qkd->nqk", q, tables, q.shape[1:-1], key_size)


def key_terms(k: Tensor, tables: Sequence[Tensor], query_size: Sequence[int]) -> list[Tensor]:
    """E(rel k) = R · K: of k (N, K_1, …, K_n, D), one (N, Q_1, …, Q_n, K_1, …, K_n)."""
    return _terms("nkd,qkd->nqk", k, tables, query_size, k.shape[1:-1])


def _terms(
    product: str,
    tokens: Tensor,
    tables: Sequence[Tensor],
    query_size: Sequence[int],
    key_size: Sequence[int],
) -> list[Tensor]:
    """The product, in Einstein's notation, of queries or keys with R, spread out for the scores."""
    terms = []
    for table in tables:
        embedding = relative_embedding(table, query_size, key_size)
        logits = torch.einsum(product, tokens.flatten(1, -2), embedding)
        terms.append(logits.reshape(-1, *query_size, *key_size))
    return terms


def value_term(attention: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """E(rel v) = Σ_j A_ij R_ij: of A (N, Q_1, …, Q_n, K_1, …, K_n), (N, Q_1, …, Q_n, D)."""
    (table,) = tables
    count = table.dim() - 1
    query_size, key_size = attention.shape[1 : 1 + count], attention.shape[1 + count :]
    embedding = relative_embedding(table, query_size, key_size)
    flat = attention.flatten(1 + count, -1).flatten(1, count)
    return torch.einsum("nqk,qkd->nqd", flat, embedding).reshape(-1, *query_size, table.shape[-1])
