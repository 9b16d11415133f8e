"""Relative positions: R is a sum over tables, each over some axes of the map (Eq. 4, Table 6).

Axes: N = batch × heads (× windows); n axes of a token map, for images height and width, for clips
time before them; Q_a queries and K_a keys along axis a; L_a table rows along it; D channels per
head.

A table that covers axes S holds one embedding for each distance along them. Decomposed positions
(Eq. 4) have one table per axis, joint ones (row 3 of Table 6) one table over all axes; between
these lie the rows of Table A.6. The fewer axes a table covers, the less is computed: the query's
term of appendix A.4 is the same for all keys that lie alike along S, the key's for all queries
that do, and the value's needs the attention map only summed over the other axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .tables import relative_index, resize_table, table_length

_QUERY_LETTERS, _KEY_LETTERS = "xyz", "ijk"


@dataclass(frozen=True)
class RelativeTable:
    """A relative position table: its name, and the axes of the map that it covers.

    Attributes:
        name: of the parameter, as in PySlowFast where that has it.
        axes: ascending, counted from the last: -1 is the width, -2 the height, -3 the time.
    """

    name: str
    axes: tuple[int, ...]

    def shape(
        self, size: Sequence[int], stride_q: Sequence[int], stride_kv: Sequence[int], head_dim: int
    ) -> tuple[int, ...]:
        """(L_a for each axis a covered, D), for a grid of ``size`` tokens before pooling."""
        lengths = (table_length(size[a], stride_q[a], stride_kv[a]) for a in self.axes)
        return (*lengths, head_dim)


_TIME, _HEIGHT, _WIDTH = (
    RelativeTable(f"rel_pos_{axis}", (place,)) for axis, place in (("t", -3), ("h", -2), ("w", -1))
)
_SPACE = RelativeTable("rel_pos_hw", (-2, -1))
# The order of the tables is that in which PySlowFast adds their terms.
_KINDS = {
    2: {
        "decomposed": (_HEIGHT, _WIDTH),
        "joint": (RelativeTable("rel_pos_joint", (-2, -1)),),
    },
    3: {
        "decomposed": (_HEIGHT, _WIDTH, _TIME),
        "joint": (RelativeTable("rel_pos_joint", (-3, -2, -1)),),
        "joint_space": (_SPACE, _TIME),
        "space": (_HEIGHT, _WIDTH),
        "time": (_TIME,),
    },
}
# The names of all relative position tables that an attention can have.
TABLES = tuple(
    dict.fromkeys(
        table.name for kinds in _KINDS.values() for kind in kinds.values() for table in kind
    )
)


def relative_tables(kind: str, axes: int) -> tuple[RelativeTable, ...]:
    """The tables of a kind of relative positions on maps with so many axes.

    Raises:
        ValueError: there is no such kind for them.
    """
    kinds = _KINDS[axes]
    if kind not in kinds:
        raise ValueError(f"rel_pos_kind must be {' or '.join(kinds)}, got {kind!r}")
    return kinds[kind]


def relative_embedding(table: Tensor, query_size: int, key_size: int) -> Tensor:
    """R of Eq. 4 along one axis, (Q, K, D), from its table (L, D)."""
    return joint_embedding(table, [query_size], [key_size])


def joint_embedding(table: Tensor, query_size: Sequence[int], key_size: Sequence[int]) -> Tensor:
    """R along all axes of a table, (Q_a, …, K_a, …, D), from its (L_a, …, D).

    Args:
        table: resized where its lengths are those of another grid.
        query_size, key_size: queries and keys along each axis that the table covers.
    """
    lengths = (2 * max(q, k) - 1 for q, k in zip(query_size, key_size, strict=True))
    table = resize_table(table, *lengths)
    covered = len(query_size)
    rows = []
    for place, (queries, keys) in enumerate(zip(query_size, key_size, strict=True)):
        shape = [1] * (2 * covered)
        shape[place], shape[covered + place] = queries, keys
        rows.append(relative_index(queries, keys, device=table.device).reshape(shape))
    return table[tuple(rows)]


def axis_logits(
    q: Tensor,
    tables: Sequence[Tensor],
    key_size: Sequence[int],
    covered: Sequence[Sequence[int]] | None = None,
) -> list[Tensor]:
    """Each query times R of each table: E(rel) of Eq. 3 before it is spread over all keys.

    Args:
        q: (N, Q_1, …, Q_n, D), unscaled.
        tables: from none on.
        key_size: (K_1, …, K_n).
        covered: the axes of each table; by default one table per axis, the first axis first.

    Returns:
        one (N, Q_1, …, Q_n, K_a for each axis a covered) per table.
    """
    axes = q.dim() - 2
    queries = _QUERY_LETTERS[:axes]
    logits = []
    for index, table in enumerate(tables):
        own = covered[index] if covered is not None else (index - axes,)
        embedding = _embedding(table, own, q.shape[1:-1], key_size)
        rows, keys = _letters(own, axes)
        logits.append(torch.einsum(f"n{queries}d,{rows}{keys}d->n{queries}{keys}", q, embedding))
    return logits


def query_term(q: Tensor, table: Tensor, covered: Sequence[int], key_size: Sequence[int]) -> Tensor:
    """E(rel q) = Q · R of one table, (N, Q_1, …, Q_n, K_1, …, K_n), 1 for K_a not covered."""
    (logits,) = axis_logits(q, [table], key_size, [covered])
    return logits.reshape(*q.shape[:-1], *_only(covered, key_size))


def key_term(k: Tensor, table: Tensor, covered: Sequence[int], query_size: Sequence[int]) -> Tensor:
    """E(rel k) = R · K of one table, (N, Q_1, …, Q_n, K_1, …, K_n), 1 for Q_a not covered."""
    axes = k.dim() - 2
    rows, keys = _letters(covered, axes)
    embedding = _embedding(table, covered, query_size, k.shape[1:-1])
    all_keys = _KEY_LETTERS[:axes]
    logits = torch.einsum(f"n{all_keys}d,{rows}{keys}d->n{rows}{all_keys}", k, embedding)
    return logits.reshape(-1, *_only(covered, query_size), *k.shape[1:-1])


def value_term(attention: Tensor, table: Tensor, covered: Sequence[int]) -> Tensor:
    """E(rel v) = Σ_j A_ij R_ij of one table.

    Args:
        attention: A, (N, Q_1, …, Q_n, K_1, …, K_n), summing to 1 over the keys.
        table: (L_a, …, D).
        covered: the axes of the table.

    Returns:
        (N, Q_1, …, Q_n, D).
    """
    axes = (attention.dim() - 1) // 2
    query_size, key_size = attention.shape[1 : 1 + axes], attention.shape[1 + axes :]
    others = [1 + 2 * axes + axis for axis in range(-axes, 0) if axis not in covered]
    summed = attention.sum(others) if others else attention
    queries, (rows, keys) = _QUERY_LETTERS[:axes], _letters(covered, axes)
    embedding = _embedding(table, covered, query_size, key_size)
    return torch.einsum(f"n{queries}{keys},{rows}{keys}d->n{queries}d", summed, embedding)


def _embedding(
    table: Tensor, covered: Sequence[int], query_size: Sequence[int], key_size: Sequence[int]
) -> Tensor:
    return joint_embedding(
        table, [query_size[axis] for axis in covered], [key_size[axis] for axis in covered]
    )


def _letters(covered: Sequence[int], axes: int) -> tuple[str, str]:
    """Letters, in Einstein's notation, of the queries and keys along the axes covered."""
    queries, keys = _QUERY_LETTERS[:axes], _KEY_LETTERS[:axes]
    return "".join(queries[axis] for axis in covered), "".join(keys[axis] for axis in covered)


def _only(covered: Sequence[int], size: Sequence[int]) -> list[int]:
    """The shape that broadcasts over all axes but those covered."""
    axes = len(size)
    return [size[axis] if axis - axes in covered else 1 for axis in range(axes)]
