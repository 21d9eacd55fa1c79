"""Pairs written in every format that they are read in, row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from ullme.data.collection_writer import EXTRAS, CollectionWriter, require_place
from ullme.data.readers import SUFFIXES
from ullme.data.tables import ROWS_PER_BLOCK, text_key
from ullme.data.wording import hint

_LIST, _SCORES = pa.list_(pa.string()), pa.list_(pa.float64())
_PASSAGES = pa.list_(pa.struct([("docid", pa.string()), ("title", pa.string()), ("text", pa.string())]))
_QUERY = {"query": pa.string()}
_PAIR_COLUMNS = {**_QUERY, "positives": _LIST, "negatives": _LIST, "instruction": pa.string(), "scores": _SCORES}
_TEVATRON_COLUMNS = {"query_id": pa.string(), **_QUERY, "positive_passages": _PASSAGES, "negative_passages": _PASSAGES}
_FLAG_COLUMNS = {**_QUERY, "pos": _LIST, "neg": _LIST, "pos_scores": _SCORES, "neg_scores": _SCORES}
_FLAG_COLUMNS |= {"prompt": pa.string()}
Line = dict[str, Any]


class Writer(Protocol):
    """Takes rows in the columns of a pair; nothing is whole before ``close``."""

    def write(self, row: Mapping[str, Any], at: str) -> None:
        """Take a row; ValueError, which names ``at``, where the format has no place for what it says."""

    def close(self) -> None:
        """Write the rest."""


def _pairs(row: Mapping[str, Any], number: int) -> Iterator[Line]:
    yield {name: row[name] for name in _PAIR_COLUMNS}


def _triplets(row: Mapping[str, Any], number: int) -> Iterator[Line]:
    one = len(row["negatives"]) == 1
    negatives = {"negative" if one else f"negative_{i}": text for i, text in enumerate(row["negatives"], start=1)}
    for positive in row["positives"]:
        yield {"anchor": row["query"], "positive": positive, **negatives}


def _tevatron(row: Mapping[str, Any], number: int) -> Iterator[Line]:
    passages = {
        f"{side[:-1]}_passages": [{"docid": f"{text_key(text):016x}", "title": "", "text": text} for text in row[side]]
        for side in ("positives", "negatives")
    }
    yield {"query_id": str(number), "query": row["query"], **passages}


def _flagembedding(row: Mapping[str, Any], number: int) -> Iterator[Line]:
    line = {"query": row["query"], "pos": row["positives"], "neg": row["negatives"]}
    scores, count = row["scores"], len(row["positives"])
    if scores is not None:
        line |= {"pos_scores": scores[:count], "neg_scores": scores[count:]}
    yield line | ({"prompt": row["instruction"]} if row["instruction"] is not None else {})


class _Shape(NamedTuple):
    """A format of lines.

    Attributes:
        lines: what is written for a row, with its number.
        columns: their Arrow types; None where the first row decides.
        holds: what beside texts it can say.
    """

    lines: Callable[[Mapping[str, Any], int], Iterator[Line]]
    columns: Mapping[str, pa.DataType] | None
    holds: tuple[str, ...] = ()


_SHAPES: dict[str, _Shape] = {
    "pairs": _Shape(_pairs, _PAIR_COLUMNS, EXTRAS),
    "triplets": _Shape(_triplets, None),
    "tevatron": _Shape(_tevatron, _TEVATRON_COLUMNS),
    "flagembedding": _Shape(_flagembedding, _FLAG_COLUMNS, EXTRAS),
}
_FOLDERS = ("beir", "msmarco")
TARGETS = (*_SHAPES, *_FOLDERS)


def require_target(output: Path, to: str | None, dropped: Sequence[str] = ()) -> str | None:
    """What a format's lines are held in, by the output's name: JSONL or Parquet; None for a folder.

    Args:
        output: the file or folder to write, which may not be there yet.
        to: one of ``TARGETS``; None stands for ``pairs``.
        dropped: ``instruction`` or ``scores``, to leave out.

    Raises:
        ValueError: an unknown format, a name that tells neither JSONL nor Parquet, or an output that cannot be written.
    """
    name = to or "pairs"
    if name not in TARGETS:
        raise ValueError(f"to: {name!r} is unknown; choose from {', '.join(TARGETS)}{hint(name, TARGETS)}")
    for field in dropped:
        if field not in EXTRAS:
            raise ValueError(f"drop: {field!r} cannot be left out; choose from {', '.join(EXTRAS)}")
    if output.exists():
        raise ValueError(f"{output}: is there already; remove it or name another output")
    if not output.parent.is_dir():
        raise ValueError(f"{output}: there is no folder {str(output.parent)!r}; make it first")
    if name in _FOLDERS:
        return None
    found = next((kind for suffix, kind in SUFFIXES.items() if output.name.lower().endswith(suffix)), None)
    if found is None or output.name.lower().endswith(".gz"):
        raise ValueError(f"{output}: its name tells no format to write; end it in .jsonl or .parquet")
    return found


def writer_of(place: Path, kind: str | None, to: str | None, dropped: Sequence[str] = ()) -> Writer:
    """What writes a format at ``place``, held as ``require_target`` says."""
    name = to or "pairs"
    return CollectionWriter(place, name, dropped) if kind is None else _Lines(place, kind, name, dropped)


class _Lines:
    """JSON lines or a Parquet file."""

    def __init__(self, place: Path, kind: str, name: str, dropped: Sequence[str]) -> None:
        self._name, self._dropped = name, dropped
        self._shape = _SHAPES[name]
        self._place, self._columns = place, tuple[str, ...]()
        self._json: TextIO | None = place.open("w", encoding="utf-8") if kind == "jsonl" else None
        self._parquet: pq.ParquetWriter | None = None
        self._block: list[Line] = []
        self._rows = 0

    def write(self, row: Mapping[str, Any], at: str) -> None:
        """As ``Writer.write``."""
        row = {**row, **dict.fromkeys(self._dropped)}
        require_place(row, self._shape.holds, self._name, at)
        self._rows += 1
        for line in self._shape.lines(row, self._rows):
            if self._shape.columns is None:
                self._require_columns(tuple(line), at)
            if self._json is not None:
                said = {name: value for name, value in line.items() if value is not None}
                self._json.write(json.dumps(said, ensure_ascii=False) + "\n")
            else:
                self._block.append(line)
        if len(self._block) >= ROWS_PER_BLOCK:
            self._flush()

    def close(self) -> None:
        """As ``Writer.close``."""
        if self._json is not None:
            self._json.close()
        elif self._block:
            self._flush()
        if self._parquet is not None:
            self._parquet.close()

    def _require_columns(self, columns: tuple[str, ...], at: str) -> None:
        """Raise unless the row has as many negatives as the first: tools that read triplets want one set of columns."""
        self._columns = self._columns or columns
        if columns != self._columns:
            here, first = (sum(name.startswith("negative") for name in names) for names in (columns, self._columns))
            said = f"{here} where the first row has {first}"
            raise ValueError(f"{at}: negatives: {said}, and triplets have one number; write pairs or flagembedding")

    def _flush(self) -> None:
        schema = pa.schema(dict(self._shape.columns or dict.fromkeys(self._columns, pa.string())))
        self._parquet = self._parquet or pq.ParquetWriter(self._place, schema)
        self._parquet.write_batch(pa.RecordBatch.from_pylist(self._block, schema=schema))
        self._block = []
