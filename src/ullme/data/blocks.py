"""Files in blocks that are read one by one, so that a source larger than memory can be shuffled and resumed.

A block is what a format reads without what stands before it: a row group of Parquet, lines of JSONL from a known byte
on, a slice of a dataset that ``datasets`` maps into memory. How many rows each has is known before any is read.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ullme.data.readers import Row, hub_dataset, json_object, saved_dataset, unreadable_parquet

#: Rows that are turned into Python objects at once.
_ROWS_AT_ONCE = 256
#: A block of lines ends with the line that fills it.
_BYTES_PER_BLOCK = 2**20
#: Rows of a block where any row can be read by itself.
_ROWS_PER_BLOCK = 256
#: Bytes of a Parquet column that are read ahead; without a bound a row group's whole column is.
_PARQUET_BUFFER = 2**20
#: Process, row group and row of a file that is not open; a forked process opens its own.
_NOWHERE = (-1, -1, 0)


class BlockFile(Protocol):
    """A file in blocks.

    Attributes:
        block_rows: rows of each block, in the file's order.
    """

    block_rows: np.ndarray

    def rows(self, block: int, start: int, stop: int) -> Iterator[Row]:
        """Rows ``start`` to ``stop`` of a block, each with its number in the file (from 1).

        Raises:
            ValueError: they cannot be read; names the file, and the row where only that is wrong.
        """


class ParquetBlocks:
    """A Parquet file by row groups. Only its end is read to begin with.

    A row group is read from its start on; rows that follow those read last are read on from there, so that a row group
    larger than memory can be read in parts.
    """

    def __init__(self, path: str) -> None:
        try:
            metadata = pq.read_metadata(path)
            self.names: tuple[str, ...] = tuple(metadata.schema.to_arrow_schema().names)
        except (pa.ArrowException, OSError) as error:
            raise unreadable_parquet(path, error) from error
        self.path = path
        self.columns: list[str] | None = None
        groups = range(metadata.num_row_groups)
        self.block_rows = np.array([metadata.row_group(i).num_rows for i in groups], dtype=np.int64)
        self._starts = np.cumsum(self.block_rows) - self.block_rows
        self._at = _NOWHERE
        self._open: Iterator[dict[str, Any]] = iter(())

    def rows(self, block: int, start: int, stop: int) -> Iterator[Row]:
        """As ``BlockFile.rows``."""
        try:
            if self._at[:2] != (os.getpid(), block) or self._at[2] > start:
                self._open, self._at = _group_rows(self.path, block, self.columns), (os.getpid(), block, 0)
            skipped = start - self._at[2]
            self._at = _NOWHERE  # until all is read: whoever stops half-way starts anew
            numbers = itertools.count(int(self._starts[block]) + start + 1)
            yield from zip(numbers, _exactly(islice(self._open, skipped, None), stop - start, self.path), strict=False)
            if stop < self.block_rows[block]:
                self._at = (os.getpid(), block, stop)
            else:
                self._open = iter(())  # a source may have more files than a process may hold open
        except (pa.ArrowException, OSError) as error:
            raise unreadable_parquet(self.path, error) from error

    def __getstate__(self) -> dict[str, Any]:
        """All but the open file, for a loader's workers."""
        return {**self.__dict__, "_at": _NOWHERE, "_open": iter(())}


def _group_rows(path: str, group: int, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    """The rows of a row group, at flat memory."""
    with pq.ParquetFile(path, buffer_size=_PARQUET_BUFFER, pre_buffer=False) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False):
            yield from batch.to_pylist()


class JsonlBlocks:
    """A JSON-lines file by lines of a megabyte. It is read through once to find them; blank lines are no rows."""

    def __init__(self, path: str) -> None:
        self.path = path
        offsets, lines, rows = [0], [1], [0]
        with open(path, "rb") as file:
            place = 0
            for number, line in enumerate(file, start=1):
                if place - offsets[-1] >= _BYTES_PER_BLOCK:
                    for known, value in ((offsets, place), (lines, number), (rows, 0)):
                        known.append(value)
                rows[-1] += not line.isspace()
                place += len(line)
        self.block_rows = np.array(rows, dtype=np.int64)
        self._offsets, self._lines = np.array(offsets, dtype=np.int64), np.array(lines, dtype=np.int64)

    def rows(self, block: int, start: int, stop: int) -> Iterator[Row]:
        """As ``BlockFile.rows``; a row's number is its line's."""
        with open(self.path, "rb") as file:
            file.seek(int(self._offsets[block]))
            numbered = enumerate(file, start=int(self._lines[block]))
            lines = ((number, line) for number, line in numbered if not line.isspace())
            for number, line in _exactly(islice(lines, start, None), stop - start, self.path):
                yield number, json_object(line, f"{self.path}, line {number}", first=number == 1)


class DatasetBlocks:
    """A dataset of the library ``datasets``, which maps it into memory."""

    def __init__(self, path: str, dataset: datasets.Dataset) -> None:
        self.path, self._dataset = path, dataset.with_format("arrow")
        starts = np.arange(0, len(dataset), _ROWS_PER_BLOCK, dtype=np.int64)
        self.block_rows = np.minimum(len(dataset) - starts, _ROWS_PER_BLOCK)

    def rows(self, block: int, start: int, stop: int) -> Iterator[Row]:
        """As ``BlockFile.rows``."""
        first = block * _ROWS_PER_BLOCK
        yield from enumerate(self._dataset[first + start : first + stop].to_pylist(), start=first + start + 1)


def _exactly(rows: Iterator[Any], count: int, path: str) -> Iterator[Any]:
    """The next rows.

    Raises:
        ValueError: there are fewer than there were when the file was opened first.
    """
    found = 0
    for row in islice(rows, count):
        found += 1
        yield row
    if found < count:
        raise ValueError(f"{path}: has fewer rows than when the run began; leave the file alone and start again")


def _jsonl(path: str, subset: str | None, split: str | None) -> BlockFile:
    if path.lower().endswith(".gz"):
        raise ValueError(f"{path}: a gzip file is read from its start on, so it cannot be streamed; unpack it")
    return JsonlBlocks(path)


BLOCK_FILES: dict[str, Callable[[str, str | None, str | None], BlockFile]] = {
    "parquet": lambda path, subset, split: ParquetBlocks(path),
    "jsonl": _jsonl,
    "saved": lambda path, subset, split: DatasetBlocks(path, saved_dataset(path, subset, split)),
    "hub": lambda path, subset, split: DatasetBlocks(path, hub_dataset(path, subset, split)),
}


def blocks_of(path: str, format_name: str, subset: str | None = None, split: str | None = None) -> BlockFile:
    """A file in blocks.

    Raises:
        ValueError: it cannot be read, or its format has no blocks.
    """
    if format_name not in BLOCK_FILES:
        raise ValueError(
            f"{path}: format {format_name!r} is read from its start on, so it cannot be streamed; write its rows as "
            "Parquet, or set data.streaming to false"
        )
    return BLOCK_FILES[format_name](path, subset, split)
