"""Scores in a report: a run's own, its base model's, and what the paper says of the same task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from ullme.apps.report_examples import base_settings
from ullme.apps.report_files import markdown_cells
from ullme.apps.report_page import Bars, Block, Grid, Text
from ullme.config import RunConfig
from ullme.models import ULLME
from ullme.models.settings import attentions_of


class Published(NamedTuple):
    """A figure of the paper: the score x 100, of which model in which language, and where it stands."""

    score: float
    model: str
    language: str
    source: str


#: The paper's figures that this program knows, by MTEB task: what its listings print. Tables 2 and 3 are not at hand
#: here, and nothing is guessed.
PUBLISHED: dict[str, Published] = {
    "MSMARCO": Published(35.8, "Mistral-7B-v0.1", "eng", "Listing 3"),
}


def task_scores(table: Sequence[Sequence[str]], base: Sequence[Sequence[str]] | None = None) -> list[Block]:
    """The table that an evaluation left, the base model's beside it if given, and the paper's figures for its tasks.

    Args:
        table: dataset, type and a score per language, head first.
        base: the same of the LLM before training.
    """
    head, *rows = table
    paper = published([row[0] for row in rows], head[2:])
    if base is None:
        return [Grid(head, rows, labels=2), *paper]
    before = {row[0]: dict(zip(base[0], row, strict=True)) for row in base[1:]}
    sides = [f"{code}, {side}" for code in head[2:] for side in ("base", "trained", "difference")]
    both = [
        [
            *row[:2],
            *(cell for code, now in zip(head[2:], row[2:], strict=True) for cell in _change(before[row[0]][code], now)),
        ]
        for row in rows
    ]
    return [Grid([*head[:2], *sides], both, labels=2), *paper]


def base_scores(config: RunConfig) -> list[list[str]]:
    """The run's evaluation of the LLM before training, under the attention with the higher average over the tasks.

    What mteb keeps of an earlier evaluation is not computed again.
    """
    from ullme.eval import evaluate  # mteb, which Python 3.10 does without

    found = []
    for attention in attentions_of(config.model.pooling):
        model = ULLME(**replace(base_settings(config), attention=attention).to_dict())
        found.append(evaluate(model, **dict(config.eval)))
    best = max(found, key=lambda results: fmean(score.score for score in results.scores))
    return markdown_cells(best.to_markdown())


def _change(before: str, now: str) -> tuple[str, str, str]:
    """Both cells and their difference: a mean over some of the datasets is compared with one over as many."""
    (then, _, among), (value, _, of) = before.partition(" "), now.partition(" ")
    known = "-" not in (before, now) and among == of
    return before, now, f"{float(value) - float(then):+.2f}" if known else "-"


def published(tasks: Sequence[str], languages: Sequence[str]) -> list[Block]:
    """The paper's figures for these tasks, or a sentence that it has none here."""
    shared = {task: PUBLISHED[task] for task in tasks if task in PUBLISHED}
    known = ", ".join(f"{task} ({p.score}, {p.model}, {p.source})" for task, p in PUBLISHED.items())
    if not shared:
        return [Text(f"The paper's figures: of these tasks none is known to this program, which knows {known}.")]
    rows = [[task, p.language, f"{p.score:.1f}", f"{p.model}, {p.source}"] for task, p in shared.items()]
    note = "" if any(p.language in languages for p in shared.values()) else " The languages differ."
    return [
        Grid(["Task", "Language", "paper", "of"], rows, "The paper's figures", labels=2, numbers=1),
        Text(f"Another model, other data and other steps: a figure to place this run by, not to beat.{note}"),
    ]


def before_and_after(rows: Mapping[str, Mapping[str, float]], strong: str) -> list[Block]:
    """Retrieval scores in 0..1 of several models: the first measure as bars, every measure in a table.

    Args:
        rows: name of a model -> measure -> score.
        strong: the row that the report is about; the others are what it is compared with.
    """
    measures = list(rows[strong])
    best = {name: max(scores[name] for row, scores in rows.items() if row != strong) for name in measures}
    table = [[row, *(f"{100 * scores[name]:.1f}" for name in measures)] for row, scores in rows.items()]
    gains = [f"{100 * (rows[strong][name] - best[name]):+.1f}" for name in measures]
    bars = Bars([(row, 100 * scores[measures[0]]) for row, scores in rows.items()], f"{measures[0]} x 100", strong)
    return [bars, Grid(["x 100", *measures], [*table, ["difference to the better base", *gains]])]
