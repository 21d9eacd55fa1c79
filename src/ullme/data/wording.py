"""How messages show values and guess at names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

_SHOWN = 60


def shortened(value: Any) -> str:
    """A value as an error message shows it: its repr, cut to one short line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 4] + "..." + text[-1]


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name most like a misspelt one, or None where none is alike."""
    found = difflib.get_close_matches(name.lower(), lowered := {n.lower(): n for n in names}, n=1, cutoff=cutoff)
    return lowered[found[0]] if found else None


def hint(name: str, names: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest known one."""
    near = nearest(name, names)
    return f"; did you mean {near!r}?" if near else ""
