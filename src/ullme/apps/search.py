"""Search the lines of a text file, or the passages of a JSONL or Parquet file, by meaning."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ullme.apps.retrieval import nearest_passages
from ullme.data.readers import SUFFIXES, lines_of
from ullme.encode.source import LINES, TEXT_COLUMNS, text_format, text_reader

#: Columns that hold passages: those of ``ullme encode``, but of pairs the positives and never the query.
_FIELDS = ("text", "passage", "positive", "positives", *(name for name in TEXT_COLUMNS[2:] if name != "query"))


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
    """The passages of a file: the non-empty lines of a ``.txt``, or the texts of JSONL or Parquet rows, each once.

    Raises:
        ValueError: a missing or empty file, one whose name tells no format or that cannot be read, or a row without a
            text, by file and line.
    """
    if os.path.isdir(path):
        raise ValueError(f"{path}: is a folder; name one file, or embed it first with ullme encode")
    if not os.path.isfile(path):  # pathlib's own raises where a name is too long
        known = ", ".join((".txt", *SUFFIXES))
        raise ValueError(f"{path}: no such file; give a text file with one passage per line, or rows: {known}")
    texts = [text for at, row in _rows(path) for text in _row_texts(row, at)]
    if not texts:
        raise ValueError(f"{path}: no passages; write one per line")
    return list(dict.fromkeys(texts))


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """What each row of a file says, with its place; blank lines say nothing."""
    kind = text_format(path)
    if kind == "jsonl":
        return _json_rows(path)
    rows = ((f"{path}, row {number}", row) for number, row in text_reader(path)(str(path)))
    return ((at, row["text"].strip()) for at, row in rows if row["text"].strip()) if kind == LINES else rows


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of JSON lines; beside objects, as all commands read them, they may be texts alone."""
    for number, line in lines_of(str(path)):
        at = f"{path}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if text:
                yield at, json.loads(text)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise ValueError(f"{at}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{at}: broken JSON ({error.msg}); write one complete object per line") from error


def _row_texts(row: Any, at: str) -> list[str]:
    value = next((row[name] for name in _FIELDS if row.get(name) is not None), None) if isinstance(row, dict) else row
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
