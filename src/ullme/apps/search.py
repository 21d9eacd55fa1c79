"""Search the lines of a text file, or the passages of a JSONL file, by meaning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ullme.apps.retrieval import nearest_passages

_FIELDS = ("text", "passage", "positive", "positives")


def search(
    model: Any, passages: Sequence[str], query: str, top_k: int = 5, prompt: str | None = None
) -> list[tuple[float, str]]:
    """The passages nearest to a query by cosine, best first, each with its score.

    Args:
        model: anything with ``encode_query`` and ``encode_document``: a ``ULLME``, a ``SentenceTransformer``.
        passages: the texts to search.
        query: what to look for.
        top_k: how many to return.
        prompt: text before the query; None takes the model's own for queries, if any.

    Raises:
        ValueError: an empty query, or nothing to search.
    """
    if not query.strip():
        raise ValueError("query: empty; say what to look for")
    if not passages:
        raise ValueError("passages: none to search; give at least one text")
    if top_k < 1:
        raise ValueError(f"top_k: {top_k} is less than 1; ask for at least one passage")
    encode_query = model.encode_query if prompt is None else partial(model.encode_query, prompt=prompt)
    found = nearest_passages(model.encode_document, passages, [query], encode_query, top_k)[0]
    return [(score, passages[at]) for at, score in found]


def read_passages(path: Path) -> list[str]:
    """The passages of a file: its non-empty lines, or for ``.jsonl`` the text of each row, each once.

    Raises:
        ValueError: a missing or empty file, or a row without a text, by file and line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give a text file with one passage per line, or a .jsonl file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    numbered = [(n, line.strip()) for n, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix == ".jsonl":
        texts = [text for n, line in numbered for text in _row_texts(line, f"{path}, line {n}")]
    else:
        texts = [line for _, line in numbered]
    if not texts:
        raise ValueError(f"{path}: no passages; write one per line")
    return list(dict.fromkeys(texts))


def _row_texts(line: str, at: str) -> list[str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{at}: broken JSON ({error.msg}); write one complete object per line") from error
    value = next((row[name] for name in _FIELDS if name in row), None) if isinstance(row, dict) else row
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{at}: no text; write a string, or an object with one of {', '.join(_FIELDS)}")
    return texts


def hits_table(query: str, hits: Sequence[tuple[float, str]]) -> Table:
    """Hits as a table for the terminal; brackets in a text are text, not markup."""
    table = Table(title=Text(query), title_justify="left", show_lines=False)
    table.add_column("score", justify="right")
    table.add_column("passage", overflow="fold")
    for score, passage in hits:
        table.add_row(f"{score:.3f}", Text(passage))
    return table


def show_search(
    model: Any,
    passages: Sequence[str],
    query: str,
    top_k: int = 5,
    console: Console | None = None,
    prompt: str | None = None,
) -> None:
    """Search, and print the hits as a table."""
    (console or Console()).print(hits_table(query, search(model, passages, query, top_k, prompt)))
