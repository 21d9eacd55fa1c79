"""One row of training data: which of its fields say what, and what may be wrong with them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ullme.data.wording import hint, nearest, shortened

#: What a row can say, and the columns that say it unless ``columns`` names others.
DEFAULT_COLUMNS: dict[str, tuple[str, ...]] = {
    "query": ("query",),
    "positives": ("positive", "positives"),
    "negatives": ("negative", "negatives"),
    "instruction": ("instruction",),
}
_REQUIRED = ("query", "positives")
_ALIASES = {"positive": "positives", "negative": "negatives"}
_NUMBERED = re.compile(r"(positive|negative)_(\d+)")
_SURROGATE = re.compile("[\ud800-\udfff]")


def roles_of(columns: Mapping[str, str | list[str]] | None) -> dict[str, tuple[str, ...]]:
    """A user's ``columns`` mapping as role -> columns; ``positive`` and ``negative`` also stand for their plurals.

    Raises:
        ValueError: a role that does not exist.
    """
    roles: dict[str, tuple[str, ...]] = {}
    for role, named in (columns or {}).items():
        plural = _ALIASES.get(role, role)
        if plural not in DEFAULT_COLUMNS:
            near = hint(role, [*DEFAULT_COLUMNS, *_ALIASES])
            raise ValueError(f"columns: unknown role {role!r}; use {', '.join(DEFAULT_COLUMNS)}{near}")
        roles[plural] = roles.get(plural, ()) + ((named,) if isinstance(named, str) else tuple(named))
    return roles


@dataclass
class RowReader:
    """Reads rows of one source; errors say where, which field, which value, and what to do.

    Attributes:
        where: what stands before a row's number in an error, for instance ``pairs.jsonl, line``.
        roles: role -> columns as the user named them; a role left out is read from its default columns.
    """

    where: str
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    _layouts: dict[tuple[str, ...], dict[str, list[str]]] = field(default_factory=dict)

    def read(self, row: Mapping[str, Any], number: int) -> dict[str, Any]:
        """The row as ``query, positives, negatives, instruction, row``, its texts unchanged.

        Raises:
            ValueError: a missing column, a wrong type, an empty text, or a positive that is also a negative.
        """
        at = f"{self.where} {number}"
        layout = self.layout(tuple(row), at)
        if len(layout["query"]) != 1 or len(layout["instruction"]) > 1:
            raise ValueError(f"{at}: columns: query and instruction are one column each; got {layout['query']}")
        query = _text(row[layout["query"][0]], layout["query"][0], at)
        lists = {
            role: [text for name in layout[role] for text in _texts(row[name], name, at, needed=role == "positives")]
            for role in ("positives", "negatives")
        }
        both = set(lists["positives"]).intersection(lists["negatives"])
        if both:
            clash = shortened(both.pop())
            raise ValueError(f"{at}: {layout['negatives'][0]}: {clash} is also a positive; remove one of the two")
        said = [row[name] for name in layout["instruction"] if row[name] is not None]
        instruction = _text(said[0], layout["instruction"][0], at) if said else None
        return {"query": query, **lists, "instruction": instruction, "row": number}

    def layout(self, names: tuple[str, ...], at: str) -> dict[str, list[str]]:
        """Role -> the columns among ``names`` that say it.

        Raises:
            ValueError: a column that is missing, named twice over, or named nearly right.
        """
        if names not in self._layouts:
            self._layouts[names] = {role: _columns(role, names, self.roles, at) for role in DEFAULT_COLUMNS}
        return self._layouts[names]


def _columns(role: str, names: Collection[str], roles: Mapping[str, tuple[str, ...]], at: str) -> list[str]:
    """The columns that say one role."""
    have = ", ".join(map(repr, names)) or "none"
    if role in roles:
        missing = [name for name in roles[role] if name not in names]
        if missing and (role in _REQUIRED or len(missing) == len(roles[role])):
            cure = hint(missing[0], names)
            raise ValueError(f"{at}: no column {missing[0]!r}, which columns.{role} names; it has {have}{cure}")
        return [name for name in roles[role] if name in names]
    found = [name for name in DEFAULT_COLUMNS[role] if name in names]
    if len(found) > 1:
        raise ValueError(f"{at}: both {found[0]!r} and {found[1]!r} exist; say which with columns: {{{role}: ...}}")
    numbered = [(int(m[2]), name) for name in names if (m := _NUMBERED.fullmatch(name)) and _ALIASES[m[1]] == role]
    found += [name for _, name in sorted(numbered)]
    if not found:
        _refuse_missing(role, names, have, at)
    return found


def _refuse_missing(role: str, names: Collection[str], have: str, at: str) -> None:
    """Raise where a role has no column: a required one always, another when a column is named nearly like it."""
    asked = DEFAULT_COLUMNS[role]
    unread = [name for name in names if not any(name in known for known in DEFAULT_COLUMNS.values())]
    cutoff = 0.6 if role in _REQUIRED else 0.88
    near = next((n for a in asked if (n := nearest(a, unread, cutoff))), None)
    if role not in _REQUIRED and near is None:
        return
    cure = f"rename {near!r}" if near else "rename a column"
    what = f"no column {asked[0]!r}" + (f" (or {asked[1]!r})" if len(asked) > 1 else "")
    example = near or "NAME"
    raise ValueError(f"{at}: {what}; it has {have}; {cure}, or set columns: {{{role}: {example}}}")


def _text(value: Any, name: str, at: str) -> str:
    """A text that says something."""
    if not isinstance(value, str):
        what = "missing (null)" if value is None else f"{shortened(value)} is a {type(value).__name__}, not a text"
        raise ValueError(f"{at}: {name}: {what}; write a text in quotes")
    if not value.strip():
        raise ValueError(f"{at}: {name}: empty text {shortened(value)}; fill it in or remove the row")
    if not value.isascii() and _SURROGATE.search(value):
        raise ValueError(f"{at}: {name}: {shortened(value)} has half a character (a lone surrogate); write it in UTF-8")
    return value


def _texts(value: Any, name: str, at: str, needed: bool) -> list[str]:
    """A text, or several; none at all only where they are not needed."""
    if value is None and not needed:
        return []
    if not isinstance(value, list | tuple):
        return [_text(value, name, at)]
    if needed and not value:
        raise ValueError(f"{at}: {name}: empty list; give at least one text or remove the row")
    return [_text(text, f"{name}[{i}]", at) for i, text in enumerate(value)]
