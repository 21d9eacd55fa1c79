"""Which columns of a row say what: a pair of query and passages, or a text alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from ullme.data.wording import hint, nearest

#: What a row can say, and the columns that say it unless ``columns`` names others.
DEFAULT_COLUMNS: dict[str, tuple[str, ...]] = {
    "query": ("query",),
    "positives": ("positive", "positives"),
    "negatives": ("negative", "negatives"),
    "instruction": ("instruction",),
    "text": ("text",),
    "scores": ("scores",),
    "positive_scores": ("positive_score", "positive_scores"),
    "negative_scores": ("negative_score", "negative_scores"),
}
#: The scores of a row, and whose they are.
SCORED: dict[str, tuple[str, ...]] = {
    "scores": ("positives", "negatives"),
    "positive_scores": ("positives",),
    "negative_scores": ("negatives",),
}
_PAIR = ("query", "positives")
#: What a text alone cannot have.
_BESIDE = ("negatives", *SCORED)
_ONE_COLUMN = ("query", "instruction", "text")
_ALIASES = {
    "positive": "positives",
    "negative": "negatives",
    "score": "scores",
    "positive_score": "positive_scores",
    "negative_score": "negative_scores",
}
_NUMBERED = re.compile(r"(positive|negative)_(\d+)")
#: How alike a column's name must be to count as a misspelt one, where another reading of the row is possible.
_ALIKE = 0.88

Layout = dict[str, list[str]]


def roles_of(columns: Mapping[str, str | list[str]] | None) -> dict[str, tuple[str, ...]]:
    """A user's ``columns`` mapping as role -> columns; ``positive``, ``score`` and so on stand for their plurals.

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


def layout_of(names: Collection[str], roles: Mapping[str, tuple[str, ...]], at: str) -> Layout:
    """Role -> the columns among ``names`` that say it: a pair's roles without ``text``, or ``text`` without a pair's.

    Where a user names the column of texts, a row that has it is a text. Otherwise a column ``text`` is one where the
    row has neither query nor positive and the user named no columns for these.

    Args:
        names: the columns of a row.
        roles: role -> columns as the user named them.
        at: the row's place, for errors.

    Raises:
        ValueError: a column that is missing, named twice over, or named nearly right, or a row that is both.
    """
    layout: Layout = {role: [] for role in DEFAULT_COLUMNS}
    if _is_text(names, roles, at):
        layout |= {role: _columns(role, names, roles, at) for role in ("text", "instruction")}
        layout |= {role: _there(role, names, roles) for role in _BESIDE}  # to be refused where they say something
    else:
        layout |= {role: _columns(role, names, roles, at) for role in DEFAULT_COLUMNS if role != "text"}
    for role in _ONE_COLUMN:
        count = len(layout[role])
        if count > 1 or (count == 0 and role == "query" and not layout["text"]):
            raise ValueError(f"{at}: columns.{role}: one column says it; got {layout[role]}, so name one")
    return layout


def _is_text(names: Collection[str], roles: Mapping[str, tuple[str, ...]], at: str) -> bool:
    """Whether a row with these columns is a text alone."""
    there = [name for name in roles.get("text", DEFAULT_COLUMNS["text"]) if name in names]
    if "text" not in roles:
        if not there or any(roles.get(role) for role in _PAIR) or _pair_columns(names, roles):
            return False
        for role in _PAIR:
            _refuse_missing(role, names, at, needed=False)
        return True
    if not there:
        return bool(roles["text"]) and not _pair_columns(names, roles)
    named = [name for role in _PAIR for name in roles.get(role, ()) if name in names]
    if named:
        cure = "give each kind of row its own source, or name one of the two in columns"
        raise ValueError(f"{at}: columns: the row has both {there[0]!r} (a text) and {named[0]!r} (a pair); {cure}")
    return True


def _pair_columns(names: Collection[str], roles: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The columns that make a row a pair."""
    return [name for role in _PAIR for name in _there(role, names, roles)]


def _there(role: str, names: Collection[str], roles: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The columns that say a role, as far as there are any."""
    known = [name for name in roles.get(role, DEFAULT_COLUMNS[role]) if name in names]
    numbered = [(int(m[2]), name) for name in names if (m := _NUMBERED.fullmatch(name)) and _ALIASES[m[1]] == role]
    return known if role in roles else known + [name for _, name in sorted(numbered)]


def _columns(role: str, names: Collection[str], roles: Mapping[str, tuple[str, ...]], at: str) -> list[str]:
    """The columns that say one role."""
    if role in roles:
        missing = [name for name in roles[role] if name not in names]
        if missing and (role in _PAIR or len(missing) == len(roles[role])):
            cure = hint(missing[0], names) or "; correct it"
            raise ValueError(f"{at}: no column {missing[0]!r}, which columns.{role} names; it has {_all(names)}{cure}")
        return _there(role, names, roles)
    both = [name for name in DEFAULT_COLUMNS[role] if name in names]
    if len(both) > 1:
        raise ValueError(f"{at}: both {both[0]!r} and {both[1]!r} exist; say which with columns: {{{role}: ...}}")
    found = _there(role, names, roles)
    if not found and role not in SCORED:
        _refuse_missing(role, names, at, needed=role in _PAIR)
    return found


def _refuse_missing(role: str, names: Collection[str], at: str, needed: bool) -> None:
    """Raise where a role has no column: a needed one always, another when a column is named nearly like it."""
    asked = DEFAULT_COLUMNS[role]
    unread = [name for name in names if not any(name in known for known in DEFAULT_COLUMNS.values())]
    near = next((n for a in asked if (n := nearest(a, unread, 0.6 if needed else _ALIKE))), None)
    if not needed and near is None:
        return
    cure = f"rename {near!r}" if near else "rename a column"
    what = f"no column {asked[0]!r}" + (f" (or {asked[1]!r})" if len(asked) > 1 else "")
    alone = "; a text without a query goes under 'text'" if needed else ""
    example = near or "NAME"
    raise ValueError(f"{at}: {what}; it has {_all(names)}; {cure}, or set columns: {{{role}: {example}}}{alone}")


def _all(names: Collection[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
