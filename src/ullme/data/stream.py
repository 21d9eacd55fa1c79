"""Sources of pairs that are read while training goes on, so that they may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ullme.data.blocks import BlockFile, ParquetBlocks, blocks_of
from ullme.data.files import labels_of
from ullme.data.rows import RowReader
from ullme.data.schema import PairDataset, example_of, source_names
from ullme.data.source import DataSource, weights_of
from ullme.data.tables import table_of
from ullme.types import PairExample

#: Tells the orders of rows apart from all else that is drawn from a run's seed.
_ORDER = 0x0D0E
#: Rows of each source that are looked at before training starts.
HEAD_ROWS = 1000


class RowSequence(Protocol):
    """One source as an endless sequence of rows: pass after pass over all of them, each pass in its own order.

    Attributes:
        rows: of one pass.
    """

    rows: int

    def take(self, start: int, stop: int, seed: int) -> list[PairExample]:
        """The rows at these places of the sequence, which depends on nothing but the source and the seed.

        Raises:
            ValueError: a row is wrong; names its file and number.
        """


def pass_order(count: int, seed: int, source: int, number: int) -> np.ndarray:
    """The order of a source's blocks, or rows, in one of its passes."""
    return np.random.default_rng([_ORDER, seed, source, number]).permutation(count)


def parts_of_stretch(start: int, stop: int, rows: int) -> Iterator[tuple[int, int, int]]:
    """A stretch of an endless sequence as (pass, from, to)."""
    while start < stop:
        number, place = divmod(start, rows)
        end = min(rows, place + stop - start)
        yield number, place, end
        start += end - place


class HeldRows:
    """A source whose rows are in memory; every pass shuffles them all."""

    def __init__(self, dataset: PairDataset, number: int) -> None:
        self._dataset, self._number = dataset, number
        self._range = dataset.source_rows()[number]
        self.rows = len(self._range)

    def take(self, start: int, stop: int, seed: int) -> list[PairExample]:
        """As ``RowSequence.take``."""
        found: list[PairExample] = []
        for number, begin, end in parts_of_stretch(start, stop, self.rows):
            order = pass_order(self.rows, seed, self._number, number)[begin:end]
            found += self._dataset.__getitems__((order + self._range.start).tolist())
        return found


class StreamedRows:
    """A source whose files are read in blocks; every pass reads the blocks of all files in an order of its own.

    Rows of one block stay together: what shuffles them is the window that takes them (``shuffle_rows``).
    """

    def __init__(self, source: DataSource, name: str, number: int) -> None:
        paths = source.files()
        self.name, self._source, self._number = name, source, number
        self.labels = labels_of(paths, name)
        self._files: list[BlockFile] = []
        self._readers: list[RowReader] = []
        for path in paths:
            container, reader = source.reader(path)
            self._files.append(_only_read(blocks_of(path, container, source.subset, source.split), reader, path))
            self._readers.append(reader)
        counts = [file.block_rows for file in self._files]
        self._file_X = np.repeat(np.arange(len(counts)), [len(count) for count in counts])
        self._block_X = np.concatenate([np.arange(len(count)) for count in counts])
        self._rows_X = _limited(np.concatenate(counts), source.limit)
        self.rows = int(self._rows_X.sum())
        if not self.rows:
            raise ValueError(f"{source.path}: no rows; write at least one pair")

    def take(self, start: int, stop: int, seed: int) -> list[PairExample]:
        """As ``RowSequence.take``."""
        found: list[PairExample] = []
        for number, begin, end in parts_of_stretch(start, stop, self.rows):
            order_X = pass_order(len(self._rows_X), seed, self._number, number)
            found += [
                example_of(row, self.name, self.labels[row["file"]], self._source.instruction)
                for row in self._read(order_X, begin, end)
            ]
        return found

    def head(self, count: int) -> Iterator[dict[str, Any]]:
        """The first rows, in the files' own order and in the columns of a pair."""
        return self._read(np.arange(len(self._rows_X)), 0, min(count, self.rows))

    def _read(self, order_X: np.ndarray, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Rows ``start`` to ``stop`` of the blocks in this order, checked."""
        ends_X = np.cumsum(self._rows_X[order_X])
        first, last = np.searchsorted(ends_X, [start, stop - 1], side="right").tolist()
        for place in range(first, last + 1):
            block, end = int(order_X[place]), int(ends_X[place])
            begin = end - int(self._rows_X[block])
            file, at = int(self._file_X[block]), int(self._block_X[block])
            if begin < end:
                rows = self._files[file].rows(at, max(start - begin, 0), min(stop, end) - begin)
                reader, more = self._readers[file], self._source.stated(file)
                yield from ({**reader.read(row, number), **more} for number, row in rows)


class PairStream:
    """Training pairs of one or more sources, read while training goes on; ``train_loader`` makes batches of them.

    Attributes:
        sources: the sources' names.
        rows: each source's rows, read when they are asked for.
        weights: share of each source in an epoch; None takes every row once.
    """

    def __init__(self, sources: Sequence[DataSource]) -> None:
        self.sources = tuple(source_names(sources))
        self.weights = weights_of(sources)
        self._instructions = [source.instruction for source in sources]
        self.rows = [StreamedRows(s, n, i) for i, (s, n) in enumerate(zip(sources, self.sources, strict=True))]

    def __len__(self) -> int:
        return sum(source.rows for source in self.rows)

    def source_rows(self) -> list[range]:
        """The rows of each source, counted through."""
        ends = np.cumsum([source.rows for source in self.rows]).tolist()
        return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def head(self, count: int = HEAD_ROWS) -> PairDataset:
        """The first rows of every source, in memory: what can be known of a stream before it is read.

        Raises:
            ValueError: one of them is wrong.
        """
        tables = [table_of(source.head(count)) for source in self.rows]
        labels = [source.labels for source in self.rows]
        return PairDataset(tables, self.sources, self._instructions, labels=labels)


def stream_pairs(sources: str | Path | DataSource | Sequence[str | Path | DataSource]) -> PairStream:
    """The pairs of these sources as a stream; the first rows of each are checked now, the others when they are read.

    A path alone stands for ``DataSource(path=...)``. Parquet files and JSON lines are read where they are; other
    datasets are mapped into memory by ``datasets``, which converts them on disk once.

    Raises:
        ValueError: a source cannot be read, cannot be streamed, or one of its first rows is wrong.
    """
    given = [sources] if isinstance(sources, str | Path | DataSource) else list(sources)
    if not given:
        raise ValueError("data: no source; name at least one file or dataset")
    stream = PairStream([s if isinstance(s, DataSource) else DataSource(path=str(s)) for s in given])
    stream.head()
    return stream


def _only_read(file: BlockFile, reader: RowReader, path: str) -> BlockFile:
    """The file, of whose columns only those are read that say something."""
    if isinstance(file, ParquetBlocks):
        file.columns = sorted({*chain.from_iterable(reader.layout(file.names, f"{path}, row 1").values())})
    return file


def _limited(rows_X: np.ndarray, limit: int | None) -> np.ndarray:
    """Rows of each block where only the first ones count."""
    if limit is None:
        return rows_X
    before_X = np.cumsum(rows_X) - rows_X
    return np.clip(limit - before_X, 0, rows_X)
