"""Positions: relative ones (Eq. 3 and 4, Tables 6 and A.6) and absolute ones.

Relative positions enter attention as up to three terms (appendix A.4): of the queries, of the
keys and of the values, each with tables of its own.
"""

from .absolute import (
    ABSOLUTE_NAMES,
    absolute_embedding,
    absolute_shapes,
    resize_frames,
    resize_grid,
    separable_embedding,
)
from .relative import (
    TABLES,
    RelativeTable,
    axis_logits,
    key_term,
    query_term,
    relative_embedding,
    relative_tables,
    value_term,
)
from .tables import relative_index, resize_table, table_length

TERMS = ("q", "k", "v")


def table_name(name: str, term: str) -> str:
    """The parameter of a term's table: the queries' bears the reference's plain name."""
    return name if term == "q" else f"{name}_{term}"


# Every relative position table that an attention can have.
TABLE_NAMES = tuple(table_name(name, term) for name in TABLES for term in TERMS)

__all__ = [
    "ABSOLUTE_NAMES",
    "TABLE_NAMES",
    "TERMS",
    "RelativeTable",
    "absolute_embedding",
    "absolute_shapes",
    "axis_logits",
    "key_term",
    "query_term",
    "relative_embedding",
    "relative_index",
    "relative_tables",
    "resize_frames",
    "resize_grid",
    "resize_table",
    "separable_embedding",
    "table_length",
    "table_name",
    "value_term",
]
