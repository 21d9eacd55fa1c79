"""Lengths, negatives and duplicates of training data, as tables and pictures, in one pass at flat memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from ullme.apps.data_check import text_digest
from ullme.data import DataSource
from ullme.data.joins import Seen

#: What a text's length is counted in; tokens come with a tokenizer.
UNITS: Mapping[str, Callable[[str], int]] = {"words": lambda text: len(text.split()), "characters": len}
ROLES = ("query", "positives", "negatives")
_PERCENTILES = (50, 95, 99)


@dataclass
class Stats:
    """What is in some data.

    Attributes:
        lengths: (role, unit) -> length -> how many texts have it.
        negatives: how many rows have so many negatives.
        counts: rows, texts, and those that stand there again.
    """

    lengths: dict[tuple[str, str], Counter[int]] = field(default_factory=dict)
    negatives: Counter[int] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def tables(self) -> list[Table]:
        """Lengths by role and unit; rows, negatives and duplicates."""
        lengths = Table(title="Lengths")
        heads = ("", "unit", "texts", "least", "mean", *(f"{p}%" for p in _PERCENTILES), "greatest")
        for i, name in enumerate(heads):
            lengths.add_column(name, justify="left" if i < 2 else "right")
        for (role, unit), found in self.lengths.items():
            mean = sum(length * count for length, count in found.items()) / found.total()
            marks = (str(percentile(found, p)) for p in _PERCENTILES)
            lengths.add_row(role, unit, str(found.total()), str(min(found)), f"{mean:.1f}", *marks, str(max(found)))
        rows = Table(title="Rows")
        rows.add_column("")
        rows.add_column("number", justify="right")
        for name, count in self.counts.items():
            rows.add_row(name, str(count))
        for number, count in sorted(self.negatives.items()):
            rows.add_row(f"rows with {number} negatives", str(count))
        return [lengths, rows]


def data_stats(sources: Sequence[DataSource], tokens: Callable[[str], int] | None = None) -> Stats:
    """Count what is in these sources.

    Args:
        sources: the data.
        tokens: how many a text has.

    Raises:
        ValueError: the first thing that is wrong with them.
    """
    units = {**UNITS, **({"tokens": tokens} if tokens else {})}
    stats = Stats()
    stats.counts.update(
        dict.fromkeys(("rows", "rows there before", "queries there before", "passages there before"), 0)
    )
    with Seen() as seen:
        for source in sources:
            for row in source.rows():
                texts = {"query": [row["query"]], "positives": row["positives"], "negatives": row["negatives"]}
                stats.negatives[len(row["negatives"])] += 1
                stats.counts["rows"] += 1
                whole = text_digest(row["query"], *sorted(row["positives"]))
                stats.counts["rows there before"] += seen.first(b"r" + whole, 1) is not None
                for role, listed in texts.items():
                    _count(stats, units, role, listed, seen)
    return stats


def _count(
    stats: Stats, units: Mapping[str, Callable[[str], int]], role: str, texts: Sequence[str], seen: Seen
) -> None:
    kind, name = (b"q", "queries") if role == "query" else (b"p", "passages")
    for text in texts:
        stats.counts[f"{name} there before"] += seen.first(kind + text_digest(text), 1) is not None
        for unit, count in units.items():
            stats.lengths.setdefault((role, unit), Counter())[count(text)] += 1


def percentile(found: Mapping[int, int], share: float) -> int:
    """The least value that so many per cent of the counted ones do not exceed."""
    wanted, passed = math.ceil(share / 100 * sum(found.values())), 0
    for value in sorted(found):
        passed += found[value]
        if passed >= wanted:
            return value
    raise AssertionError("nothing was counted")


def plot_stats(stats: Stats, folder: Path) -> list[Path]:
    """Draw the lengths, a picture per unit with a panel per role; the longest hundredth is left out of the picture."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for unit in dict.fromkeys(unit for _, unit in stats.lengths):
        roles = [role for role in ROLES if (role, unit) in stats.lengths]
        figure = Figure(figsize=(7, 2.2 * len(roles)), layout="constrained")
        for i, role in enumerate(roles):
            found = stats.lengths[role, unit]
            most = percentile(found, 99)
            drawn = {length: count for length, count in found.items() if length <= most}
            axes = figure.add_subplot(len(roles), 1, i + 1, xlabel=f"{unit} of {role}", ylabel="texts")
            axes.hist(list(drawn), weights=list(drawn.values()), bins=min(50, most - min(drawn) + 1))
            axes.axvline(percentile(found, 50), color="black", linestyle="--", linewidth=1)
            axes.grid(alpha=0.3)
        made.append(folder / f"lengths-{unit}.png")
        figure.savefig(made[-1], dpi=120)
    return made


def token_counter(model: str) -> Callable[[str], int]:
    """How many tokens a text has for a model, special ones included.

    Raises:
        ValueError: no such model, or it has no tokenizer.
    """
    from ullme.models.checkpoint import SETTINGS_FILE
    from ullme.models.loading import load_tokenizer, resolve
    from ullme.models.settings import ModelSettings

    settings = ModelSettings(model)
    own = Path(model) / SETTINGS_FILE  # an adapter's folder has a tokenizer and no config of its own
    tokenizer = load_tokenizer(settings, model if own.is_file() else resolve(settings))
    return lambda text: len(tokenizer(text)["input_ids"])
