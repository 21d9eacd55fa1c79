"""Training pairs: from the sources a run names to an Arrow-backed dataset of ``PairExample``."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.fingerprint import generate_random_fingerprint
from torch.utils.data import Dataset

from ullme.data.files import labels_of
from ullme.data.rows import RowReader
from ullme.data.source import DataSource, weights_of
from ullme.data.tables import ROW_SCHEMA, ROWS_PER_BLOCK, entries_of, lengths_of, table_of, text_key
from ullme.types import PairExample


class PairDataset(Dataset[PairExample]):
    """Training pairs of one or more sources as a map-style dataset; texts stay in Arrow until a row is asked for.

    ``dataset[i]`` is a ``PairExample`` whose ``row_id`` reads like ``pairs.jsonl:17`` (the line, or row, from 1).

    Attributes:
        sources: the sources' names.
        weights: share of each source in an epoch; None takes every row once.
    """

    def __init__(
        self,
        tables: Sequence[pa.Table],
        sources: Sequence[str],
        instructions: Sequence[str | None],
        *,
        labels: Sequence[Sequence[str]] | None = None,
        weights: tuple[float, ...] | None = None,
    ) -> None:
        assert len(tables) == len(sources) == len(instructions)
        self.sources, self.weights = tuple(sources), weights
        self._instructions = tuple(instructions)
        self._labels = tuple(labels) if labels is not None else tuple([name] for name in sources)
        self._ends = list(accumulate(table.num_rows for table in tables))
        # hashing the table, which a given fingerprint avoids, would copy it whole
        self._rows = datasets.Dataset(pa.concat_tables(tables), fingerprint=generate_random_fingerprint())

    @classmethod
    def from_examples(cls, examples: Iterable[PairExample], source: str = "pairs") -> PairDataset:
        """A dataset of examples at hand; they are numbered from 1 in their order.

        Raises:
            ValueError: as for a file.
        """
        reader = RowReader(f"{source}, row")
        rows = (
            {**reader.read(_row(e), i), "file": 0, "in_batch_negatives": e.in_batch_negatives}
            for i, e in enumerate(examples, start=1)
        )
        return cls([table_of(rows)], [source], [None])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> PairExample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, index: Sequence[int]) -> list[PairExample]:
        """Several rows at once: what a DataLoader calls, and the quick way."""
        columns = self._rows[list(index)]
        rows = zip(*(columns[name] for name in ROW_SCHEMA.names), strict=True)
        return [
            self._example(i, dict(zip(ROW_SCHEMA.names, row, strict=True))) for i, row in zip(index, rows, strict=True)
        ]

    def _example(self, i: int, row: Mapping[str, Any]) -> PairExample:
        at = self.source_of(i)
        return example_of(row, self.sources[at], self._labels[at][row["file"]], self._instructions[at])

    def source_of(self, index: int) -> int:
        """The position in ``sources`` of the source a row comes from."""
        return bisect_right(self._ends, index)

    def source_rows(self) -> list[range]:
        """The rows of each source."""
        return [range(start, end) for start, end in zip([0, *self._ends], self._ends, strict=False)]

    def negatives_N(self) -> np.ndarray:
        """How many negatives each row has."""
        return lengths_of(self._rows.data.table["negatives"])

    def text_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and key, both (X,) int64, of every query and positive: what the rows of a batch must not share."""
        rows, keys = [], []
        start = 0
        for block in self._rows.select_columns(["query", "positives"]).iter(batch_size=ROWS_PER_BLOCK):
            for i, (query, positives) in enumerate(zip(block["query"], block["positives"], strict=True), start=start):
                keys += [text_key(query), *map(text_key, positives)]
                rows += [i] * (1 + len(positives))
            start += len(block["query"])
        return np.array(rows, dtype=np.int64), np.array(keys, dtype=np.int64)

    def require_negatives(self, reason: str) -> None:
        """Raise unless some row has a negative.

        Raises:
            ValueError: no row has one; ``reason`` says who needs them.
        """
        if not self.negatives_N().any():
            names = ", ".join(self.sources)
            raise ValueError(f"{names}: negatives: no row has one, and {reason}; add a 'negatives' column or mine them")

    def require_scores(self, reason: str) -> None:
        """Raise unless every row has a teacher's scores.

        Raises:
            ValueError: a row has none; ``reason`` says who needs them.
        """
        without = pc.is_null(self._rows.data.table["scores"])
        if pc.any(without).as_py():
            row_id = self[pc.index(without, True).as_py()].row_id
            cure = "add a 'scores' column, or name yours with columns: {scores: NAME}"
            raise ValueError(f"{row_id}: scores: the row has none, and {reason}; {cure}")

    def summary(self) -> dict[str, dict[str, int]]:
        """Per source: its rows, those with negatives, with scores, its passages, its longest one in characters."""
        found = {}
        for name, rows in zip(self.sources, self.source_rows(), strict=True):
            part = self._rows.data.table.slice(rows.start, len(rows))
            negatives = lengths_of(part["negatives"])
            positives = lengths_of(part["positives"])
            longest = max(len(text) for column in ("positives", "negatives") for text in entries_of(part[column]))
            found[name] = {
                "rows": len(rows),
                "rows_with_negatives": int((negatives > 0).sum()),
                "rows_with_scores": len(rows) - part["scores"].null_count,
                "passages": int(positives.sum() + negatives.sum()),
                "longest_passage": longest,
            }
        return found


def load_pairs(sources: str | Path | DataSource | Sequence[str | Path | DataSource]) -> PairDataset:
    """The pairs of these sources, every row of them checked.

    A path alone stands for ``DataSource(path=...)``. No model is needed, so a run checks its data before it loads one.

    Raises:
        ValueError: the first thing that is wrong, in one line: file, row, field, value and cure.
    """
    given = [sources] if isinstance(sources, str | Path | DataSource) else list(sources)
    if not given:
        raise ValueError("data: no source; name at least one file or dataset")
    listed = [s if isinstance(s, DataSource) else DataSource(path=str(s)) for s in given]
    names, weights = source_names(listed), weights_of(listed)
    return PairDataset(
        [table_of(source.rows()) for source in listed],
        names,
        [source.instruction for source in listed],
        labels=[labels_of(source.files(), name) for source, name in zip(listed, names, strict=True)],
        weights=weights,
    )


def check_pairs(sources: str | Path | DataSource | Sequence[str | Path | DataSource]) -> dict[str, dict[str, int]]:
    """What is in these sources (see ``PairDataset.summary``), every row of them checked.

    Raises:
        ValueError: as ``load_pairs``.
    """
    return load_pairs(sources).summary()


def example_of(row: Mapping[str, Any], source: str, label: str, instruction: str | None) -> PairExample:
    """A checked row as an example; ``label`` stands before its number, ``instruction`` is its source's."""
    return PairExample(
        query=row["query"],
        positives=tuple(row["positives"]),
        negatives=tuple(row["negatives"]),
        instruction=row["instruction"] or instruction,
        source=source,
        row_id=f"{label}:{row['row']}",
        scores=None if row["scores"] is None else tuple(row["scores"]),
        in_batch_negatives=row["in_batch_negatives"],
    )


def source_names(sources: Sequence[DataSource]) -> list[str]:
    """A distinct name per source: its own, its file's, or its whole path where two files are called alike.

    Raises:
        ValueError: two sources of one name.
    """
    short = [source.name or Path(source.path).name for source in sources]
    counted = Counter(short)
    names = [s.path if counted[n] > 1 and s.name is None else n for s, n in zip(sources, short, strict=True)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"data: two sources are called {twice[0]!r}; give each its own name")
    return names


def _row(example: PairExample) -> dict[str, Any]:
    return {
        "query": example.query,
        "positives": list(example.positives),
        "negatives": list(example.negatives),
        "instruction": example.instruction,
        "scores": None if example.scores is None else list(example.scores),
    }
