"""One row of training data: what it says, and what may be wrong with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ullme.data.columns import DEFAULT_COLUMNS, SCORED, Layout, layout_of
from ullme.data.dialects import dialect_roles
from ullme.data.wording import shortened

_SURROGATE = re.compile("[\ud800-\udfff]")
#: Scores become float32 tensors.
_GREATEST_SCORE = 3.4e38


@dataclass
class RowReader:
    """Reads rows of one source; errors say where, which field, which value, and what to do.

    Attributes:
        where: what stands before a row's number in an error, for instance ``pairs.jsonl, line``.
        roles: role -> columns as the user named them; a role left out is read from its default columns.
        dialect: whose columns these are (``DIALECTS``); None tells it by the columns of each row.
    """

    where: str
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dialect: str | None = None
    _layouts: dict[tuple[str, ...], Layout] = field(default_factory=dict)

    def read(self, row: Mapping[str, Any], number: int) -> dict[str, Any]:
        """The row as ``query, positives, negatives, instruction, scores, row``, its texts unchanged.

        A text alone is its own query and positive. ``scores`` has one number per positive, then per negative; None
        where the row has none, or empty lists of them. An empty instruction is none.

        Raises:
            ValueError: a missing column, a wrong type, an empty text, a positive that is also a negative, or scores
                that do not fit the passages.
        """
        at = f"{self.where} {number}"
        layout = self.layout(tuple(row), at)
        said = _lone_text(row, layout, at) if layout["text"] else _pair(row, layout, at)
        given = [row[name] for name in layout["instruction"] if row[name] not in (None, "")]
        instruction = _text(given[0], layout["instruction"][0], at) if given else None
        return {**said, "instruction": instruction, "row": number}

    def layout(self, names: tuple[str, ...], at: str) -> Layout:
        """Role -> the columns among ``names`` that say it (``layout_of``)."""
        if names not in self._layouts:
            self._layouts[names] = layout_of(names, dialect_roles(names, self.dialect, self.roles, at), at)
        return self._layouts[names]


def _pair(row: Mapping[str, Any], layout: Layout, at: str) -> dict[str, Any]:
    query = _text(row[layout["query"][0]], layout["query"][0], at)
    lists = {
        role: [text for name in layout[role] for text in _texts(row[name], name, at, needed=role == "positives")]
        for role in ("positives", "negatives")
    }
    both = set(lists["positives"]).intersection(lists["negatives"])
    if both:
        clash = shortened(both.pop())
        raise ValueError(f"{at}: {layout['negatives'][0]}: {clash} is also a positive; remove one of the two")
    return {"query": query, **lists, "scores": _scores(row, layout, lists, at)}


def _lone_text(row: Mapping[str, Any], layout: Layout, at: str) -> dict[str, Any]:
    """A text as its own positive; it has no passages that could be negatives, or scored."""
    name = layout["text"][0]
    text = _text(row[name], name, at)
    for role in ("negatives", *SCORED):
        for other in layout[role]:
            if row[other] not in (None, [], ()):
                raise ValueError(
                    f"{at}: {other}: {shortened(row[other])} does not go with a text alone ({name!r}); give query and "
                    f"positive in its place, or set columns: {{{role}: []}} to leave it unread"
                )
    return {"query": text, "positives": [text], "negatives": [], "scores": None}


def _scores(row: Mapping[str, Any], layout: Layout, lists: Mapping[str, list[str]], at: str) -> list[float] | None:
    """A teacher's scores of the positives and then of the negatives, or None."""
    if not (layout["scores"] or layout["positive_scores"] or layout["negative_scores"]):
        return None
    given = {role: [name for name in layout[role] if row[name] is not None] for role in SCORED}
    apart = [name for role in ("positive_scores", "negative_scores") for name in given[role]]
    if all(row[name] in ([], ()) for name in (*apart, *given["scores"])):
        return None
    if apart and given["scores"]:
        both = f"both {given['scores'][0]!r} and {apart[0]!r} have scores"
        raise ValueError(f"{at}: {both}; leave one unread with columns: {{scores: []}}, or remove it")
    found: list[float] = []
    read = ("positive_scores", "negative_scores") if apart else ("scores",)
    for role in read:
        numbers = [number for name in given[role] for number in _numbers(row[name], name, at)]
        wanted = [text for kind in SCORED[role] for text in lists[kind]]
        if len(numbers) != len(wanted):
            name = (layout[role] or DEFAULT_COLUMNS[role])[-1]
            unread = ", ".join(f"{role}: []" for role in read)
            raise ValueError(
                f"{at}: {name}: {len(numbers)} scores for {len(wanted)} {' and '.join(SCORED[role])}; give one number "
                f"for each, or set columns: {{{unread}}} to leave scores unread"
            )
        found += numbers
    return found


def _numbers(value: Any, name: str, at: str) -> list[float]:
    """A number, or several."""
    if not isinstance(value, list | tuple):
        return [_number(value, name, at)]
    return [_number(number, f"{name}[{i}]", at) for i, number in enumerate(value)]


def _number(value: Any, name: str, at: str) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        what = "missing (null)" if value is None else f"{shortened(value)} is a {type(value).__name__}, not a number"
        raise ValueError(f"{at}: {name}: {what}; write the score as a number")
    if not abs(value) <= _GREATEST_SCORE:  # not so for NaN either
        raise ValueError(f"{at}: {name}: {shortened(value)} is no finite score; correct it or remove the row")
    return float(value)


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
        return [_passage(value, name, at)]
    if needed and not value:
        raise ValueError(f"{at}: {name}: empty list; give at least one text or remove the row")
    return [_passage(text, f"{name}[{i}]", at) for i, text in enumerate(value)]


def _passage(value: Any, name: str, at: str) -> str:
    """A text, or the title and text of an object that has them."""
    if not isinstance(value, Mapping) or "text" not in value:
        return _text(value, name, at)
    return _text(titled(value.get("title"), value["text"]), f"{name}.text", at)


def titled(title: Any, text: Any) -> Any:
    """A passage as it is read: its title, where it has one, a blank, and its text."""
    return f"{title} {text}".strip() if title and isinstance(title, str) and isinstance(text, str) else text
