"""Checked rows as Arrow, and the numbers that texts are known by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

#: A checked row. ``file`` counts the files of its source, ``row`` the rows of that file.
ROW_SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("positives", pa.list_(pa.string())),
        ("negatives", pa.list_(pa.string())),
        ("instruction", pa.string()),
        ("row", pa.int64()),
        ("scores", pa.list_(pa.float64())),
        ("file", pa.int32()),
        ("in_batch_negatives", pa.bool_()),
    ]
)
ROWS_PER_BLOCK = 4096


def table_of(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Checked rows as Arrow, a block at a time."""
    rows, blocks = iter(rows), []
    while block := list(islice(rows, ROWS_PER_BLOCK)):
        blocks.append(pa.RecordBatch.from_pylist(block, schema=ROW_SCHEMA))
    return pa.Table.from_batches(blocks, schema=ROW_SCHEMA)


def lengths_of(column: pa.ChunkedArray) -> np.ndarray:
    """How many entries each list of a column has."""
    return pc.list_value_length(column).to_numpy()


def entries_of(column: pa.ChunkedArray) -> Iterator[str]:
    """The entries of all lists of a column."""
    return chain.from_iterable(chunk.flatten().to_pylist() for chunk in column.chunks)


def text_key(text: str) -> int:
    """A number in [0, 2**63) that equal texts share, on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
