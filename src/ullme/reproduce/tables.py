"""The paper's Table 2 (average and by type of task) and Table 3 (by task), as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from ullme.files import written
from ullme.reproduce.bootstrap import LEVEL, Comparison, against, claimed_order, references, scores_of
from ullme.reproduce.results import RowResult
from ullme.reproduce.rows import NAMED

#: The order of the paper's columns; other types come after.
TYPES = "Retrieval Reranking Clustering PairClassification Classification STS Summarization".split()
_LATEX = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$", "±": r"$\pm$"}


@dataclass(frozen=True)
class Table:
    """Cells as text; the first ``labels`` columns are no numbers."""

    title: str
    head: list[str]
    rows: list[list[str]]
    labels: int = 1

    def markdown(self) -> str:
        """A Markdown table under its title."""
        line = ["---"] * self.labels + ["---:"] * (len(self.head) - self.labels)
        lines = ["| " + " | ".join(row) + " |" for row in (self.head, line, *self.rows)]
        return f"{self.title}\n\n" + "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Comma-separated values with a header."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.head, *self.rows])
        return text.getvalue()

    def latex(self) -> str:
        """A ``tabular`` for the package booktabs."""
        columns = "l" * self.labels + "r" * (len(self.head) - self.labels)
        body = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in self.rows]
        head = " & ".join(_escaped(cell) for cell in self.head) + r" \\"
        rules = [r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
        return "\n".join([f"% {self.title}", rf"\begin{{tabular}}{{{columns}}}", *rules, r"\end{tabular}"]) + "\n"


def by_type(results: Sequence[RowResult]) -> Table:
    """Table 2: a row per method, a column per type of task, then the mean over all tasks, each counted once.

    A cell is the mean over seeds, with their standard deviation where there are several.
    """
    kinds = types_of(results)
    numbers = {kind: sum(k == kind for k in kinds.values()) for kind in _ordered(set(kinds.values()))}
    head = ["", "seeds", *(f"{kind} ({n})" for kind, n in numbers.items()), f"Average ({len(kinds)})"]
    rows = []
    for name, group in grouped(results).items():
        cells = [_cell([_mean(r, [t for t in kinds if kinds[t] == kind]) for r in group]) for kind in numbers]
        rows.append([group[0].label, _seeds(group), *cells, _cell([_mean(r, kinds) for r in group])])
        assert name == group[0].row
    return Table("Main score x 100, mean over the tasks of a type", head, rows)


def by_task(results: Sequence[RowResult]) -> Table:
    """Table 3: a row per task, a column per method, then their averages."""
    kinds, groups = types_of(results), grouped(results)
    order = _ordered(set(kinds.values()))
    tasks = sorted(kinds, key=lambda task: (order.index(kinds[task]), task))
    rows = [[task, kinds[task], *(_cell([_mean(r, [task]) for r in g]) for g in groups.values())] for task in tasks]
    rows.append(["Average", "", *(_cell([_mean(r, kinds) for r in g]) for g in groups.values())])
    head = ["Task", "Type", *(group[0].label for group in groups.values())]
    return Table("Main score x 100 of each task", head, rows, labels=2)


def compared(title: str, comparisons: Iterable[Comparison]) -> Table:
    """Differences with their intervals, in points."""
    head = ["Row", "above", "difference", f"{100 * LEVEL:.0f}% interval", "tasks", "seeds", "verdict"]
    rows = []
    for c in comparisons:
        d = c.difference
        interval = f"{d.low:+.2f} to {d.high:+.2f}"
        named = [_label(c.row), _label(c.other), f"{d.mean:+.2f}", interval]
        rows.append([*named, str(d.tasks), str(d.seeds), c.verdict])
    return Table(title, head, rows, labels=2)


def write_tables(results: Sequence[RowResult], folder: Path) -> dict[str, Table]:
    """Write every table in every format into a folder; gives them back by name."""
    scores = scores_of(results)
    tables = {
        "table2": by_type(results),
        "table3": by_task(results),
        "ordering": compared("The ordering that the paper claims, pair by pair", claimed_order(scores)),
    }
    for name, other in references(scores).items():
        title = f"Every row against {_label(other)}" if other else ""
        tables[f"against_{name}"] = compared(title, against(scores, other))
    kept = {name: table for name, table in tables.items() if table.rows}
    for name, table in kept.items():
        for ending, text in (("md", table.markdown()), ("csv", table.csv()), ("tex", table.latex())):
            written(folder / f"{name}.{ending}", text)
    return kept


def grouped(results: Iterable[RowResult]) -> dict[str, list[RowResult]]:
    """The seeds of each row."""
    groups: dict[str, list[RowResult]] = {}
    for result in results:
        groups.setdefault(result.row, []).append(result)
    return groups


def types_of(results: Iterable[RowResult]) -> dict[str, str]:
    """The type of every task."""
    return {score.task: score.task_type for result in results for score in result.scores}


def _ordered(types: set[str]) -> list[str]:
    return [kind for kind in TYPES if kind in types] + sorted(types - set(TYPES))


def _label(row: str) -> str:
    return NAMED[row].label if row in NAMED else row


def _seeds(group: Sequence[RowResult]) -> str:
    return str(len(group)) if group[0].seed is not None else "-"


def _mean(result: RowResult, tasks: Iterable[str]) -> float | None:
    """The mean over these tasks; None if the row lacks one, since a mean over others is another number."""
    scores = [result.by_task.get(task) for task in tasks]
    present = [score for score in scores if score is not None]
    return fmean(present) if present and len(present) == len(scores) else None


def _cell(values: Sequence[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there or len(there) < len(values):
        return "-"
    return f"{fmean(there):.2f}" + (f" ± {stdev(there):.2f}" if len(there) > 1 else "")


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
