"""The demo page's answers as HTML: whatever stands in a passage is shown as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ullme.apps.demo import Shown, agreement, bars
from ullme.types import Attention

#: The two scores: field, symbol, what it is.
_SCORES = (
    ("s_rt", "s<sub>rt</sub>", "cosine of the embeddings"),
    ("s_gen", "s<sub>gen</sub>", "mean log-likelihood of the passage's tokens given the query, in nats"),
)

_TAU = "how alike both scores rank these passages: Kendall’s tau, 1 for the same order, -1 for the reverse"

_LEGEND = (
    "<p class='u-legend'><span class='u-key s_rt'></span><b>s<sub>rt</sub></b> cosine of the embeddings, under the "
    "attention chosen above <span class='u-key s_gen'></span><b>s<sub>gen</sub></b> mean log-likelihood of the "
    "passage’s tokens given the query, in nats; always causal. A full bar is the highest value of the column, the "
    "shortest bar its lowest: bars show places in the list, numbers the values.</p>"
)


@dataclass(frozen=True)
class Column:
    """What one model answers under one attention mode."""

    name: str
    attention: Attention
    shown: tuple[Shown, ...]


def answer_html(columns: Sequence[Column]) -> str:
    """One or two columns of ranked passages, side by side."""
    ranks = [{passage.id: rank for rank, passage in enumerate(column.shown, 1)} for column in columns]
    made = [
        _column(column, ranks[1 - i] if len(columns) == 2 else None, "right" if i == 0 else "left")
        for i, column in enumerate(columns)
    ]
    return f"<div class='u-answer' data-columns='{len(columns)}'>{''.join(made)}</div>{_LEGEND}"


def note_html(text: str, kind: str = "hint") -> str:
    """A remark in place of an answer: a hint, or an error."""
    return f"<p class='u-note u-{kind}' role='{'alert' if kind == 'error' else 'note'}'>{text_html(text)}</p>"


def text_html(text: str) -> str:
    """Text as it is to be read; nothing in it is markup, nor a template of the page's."""
    return escape(text).replace("{", "&#123;").replace("$", "&#36;")


def _column(column: Column, other: Mapping[str, int] | None, side: str) -> str:
    tau = agreement(column.shown)
    agree = "" if tau is None else f"<span title='{_TAU}'>agreement τ = {_number(tau, 2)}</span>"
    lengths = [bars([getattr(passage, field) for passage in column.shown]) for field, _, _ in _SCORES]
    cards = [
        _card(rank, passage, [length[rank - 1] for length in lengths], _elsewhere(passage, other, side))
        for rank, passage in enumerate(column.shown, 1)
    ]
    head = f"<b title='{text_html(column.name)}'>{text_html(short_name(column.name))}</b>"
    chip = f"<span class='u-chip u-{column.attention}'>{column.attention}</span>"
    return (
        f"<section class='u-column' data-attention='{column.attention}'><header>{head}{chip}{agree}</header>"
        f"<ol>{''.join(cards)}</ol></section>"
    )


def _card(rank: int, passage: Shown, lengths: Sequence[float], elsewhere: str) -> str:
    scores = "".join(
        _bar(field, symbol, meaning, getattr(passage, field), length)
        for (field, symbol, meaning), length in zip(_SCORES, lengths, strict=True)
    )
    name = text_html(passage.id)
    return (
        f"<li class='u-card' data-id='{name}'><div class='u-top'><span class='u-rank'>{rank}</span>"
        f"<span class='u-id' title='{name}'>{name}</span>{elsewhere}</div>"
        f"<details><summary title='click for the whole passage'>{text_html(passage.text)}</summary></details>"
        f"<div class='u-scores'>{scores}</div></li>"
    )


def _bar(field: str, symbol: str, meaning: str, value: float, length: float) -> str:
    shown = _number(value, 3)
    bar = f"<i style='width:{100 * length:.1f}%'></i>"
    return (
        f"<div class='u-score {field}' title='{meaning}'><span>{symbol}</span>"
        f"<span class='u-track' role='img' aria-label='{field} {shown}'>{bar}</span>"
        f"<span class='u-value'>{shown}</span></div>"
    )


def _elsewhere(passage: Shown, other: Mapping[str, int] | None, side: str) -> str:
    """Where the other column has the passage."""
    if other is None:
        return ""
    rank = other.get(passage.id)
    return f"<span class='u-other'>{side}: {'not shown' if rank is None else f'#{rank}'}</span>"


def short_name(name: str, most: int = 30) -> str:
    """As much of the end of a path as fits, at least its last part."""
    parts = name.rstrip("/").split("/")
    fitting = ["/".join(parts[start:]) for start in range(len(parts))]
    return next((end for end in fitting if len(end) <= most), fitting[-1])


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}".replace("-", "−")
