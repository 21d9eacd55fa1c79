"""Columns as other tools name them: by its columns a row says whose it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

Roles = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Dialect:
    """How another tool names the columns of a pair.

    Attributes:
        marks: columns that every row of it has.
        ours: columns of which it has none: with one of these a row is ours, whatever else it has.
        columns: role -> column where that differs from ours; all but the marks may be missing.
    """

    marks: tuple[str, ...]
    ours: tuple[str, ...]
    columns: Mapping[str, str]

    def roles(self, names: Collection[str]) -> Roles:
        """Role -> columns for a row with these columns."""
        return {role: (column,) if column in names else () for role, column in self.columns.items()}


_POSITIVES = ("positive", "positives")
DIALECTS: dict[str, Dialect] = {
    # sentence-transformers: anchor, positive, and negative or negative_1, negative_2, ...
    "triplets": Dialect(("anchor", "positive"), ("query",), {"query": "anchor"}),
    # Tevatron: passages are objects of docid, title and text
    "tevatron": Dialect(
        ("query", "positive_passages"), _POSITIVES, {"positives": "positive_passages", "negatives": "negative_passages"}
    ),
    "flagembedding": Dialect(
        ("query", "pos"),
        _POSITIVES,
        {
            "positives": "pos",
            "negatives": "neg",
            "positive_scores": "pos_scores",
            "negative_scores": "neg_scores",
            "instruction": "prompt",
        },
    ),
}


def dialect_of(names: Collection[str]) -> str | None:
    """The dialect of a row with these columns; None for one of ours, or of nobody's."""
    for name, dialect in DIALECTS.items():
        if all(mark in names for mark in dialect.marks) and not any(column in names for column in dialect.ours):
            return name
    return None


def dialect_roles(names: Collection[str], given: str | None, roles: Mapping[str, tuple[str, ...]], at: str) -> Roles:
    """Role -> columns of the row's dialect, the given one or the one that its columns tell, under what a user named.

    Where the user named the columns of query, positives or text, the columns tell no dialect.

    Raises:
        ValueError: a row without the columns that mark the given dialect.
    """
    told = None if any(roles.get(role) for role in ("query", "positives", "text")) else dialect_of(names)
    chosen = given or told
    if chosen is None:
        return dict(roles)
    missing = [mark for mark in DIALECTS[chosen].marks if mark not in names]
    if missing:
        have = ", ".join(map(repr, names)) or "none"
        raise ValueError(f"{at}: no column {missing[0]!r}, which {chosen} rows have; it has {have}; set its own format")
    return {**DIALECTS[chosen].roles(names), **roles}
