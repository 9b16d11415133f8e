"""Positions: relative ones, decomposed (Eq. 3 and 4) or joint (Table 6), and absolute ones.

Relative positions enter attention as up to three terms (appendix A.4): of the queries, of the
keys and of the values. :mod:`.decomposed` and :mod:`.joint` have the same functions, one for each
term; they differ in their tables.
"""

from . import decomposed, joint
from .absolute import absolute_embedding, resize_grid
from .decomposed import axis_logits, relative_embedding
from .tables import relative_index, resize_table, table_length

RELATIVE = {"decomposed": decomposed, "joint": joint}
TERMS = ("q", "k", "v")


def table_name(name: str, term: str) -> str:
    """The parameter of a term's table: the queries' bears the reference's plain name."""
    return name if term == "q" else f"{name}_{term}"


# Every relative position table that an attention can have.
TABLE_NAMES = tuple(
    table_name(name, term) for kind in RELATIVE.values() for name in kind.TABLES for term in TERMS
)

__all__ = [
    "RELATIVE",
    "TABLE_NAMES",
    "TERMS",
    "absolute_embedding",
    "axis_logits",
    "decomposed",
    "joint",
    "relative_embedding",
    "relative_index",
    "resize_grid",
    "resize_table",
    "table_length",
    "table_name",
]
