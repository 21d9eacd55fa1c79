"""Shards: the rows of one as they are read from the source, and its files as they are written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ullme.encode.folder import CorpusFolder
from ullme.encode.job import Job
from ullme.encode.precision import PRECISIONS, quantised, stored_width
from ullme.encode.source import TextRow
from ullme.encode.survey import row_bytes

#: Rows of a Parquet row group: what is read to show one text.
GROUP_ROWS = 1024


class ShardRows(NamedTuple):
    """The rows of one shard."""

    shard: int
    rows: list[TextRow]


class ShardReader:
    """The rows of shards, read from the source as it streams by; going back reads it from its start."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._rows: Iterator[TextRow] = iter(())
        self._next = job.shards

    def read(self, shard: int) -> ShardRows:
        """The rows of one shard.

        Raises:
            ValueError: they are no longer those that the job began with.
        """
        if shard < self._next:
            self._rows, self._next = self._job.source.rows(), 0
        size = self._job.options.shard_rows
        rows = list(islice(self._rows, (shard - self._next) * size, (shard - self._next + 1) * size))
        self._next = shard + 1
        digest = hashlib.sha256(b"".join(row_bytes(row)[0] for row in rows)).hexdigest()
        if digest != self._job.shard_digests[shard]:
            first = shard * size + 1
            raise ValueError(
                f"{self._job.source.path}: rows {first} to {first + self._job.rows_of(shard) - 1} changed while "
                "they were being encoded; put them back, or name a new folder"
            )
        return ShardRows(shard, rows)


class ShardWriter:
    """The files of one shard: embeddings in any order, then all of it put into place at once."""

    def __init__(self, job: Job, folder: CorpusFolder, rows: ShardRows, ranges_2D: np.ndarray | None) -> None:
        self._job, self._folder, self._ranges_2D = job, folder, ranges_2D
        self._shard, self._rows = rows
        precision = job.options.precision
        self._shape = (len(self._rows), stored_width(job.dimension, precision))
        self._dtype = np.dtype(PRECISIONS[precision])
        self._stack = ExitStack()
        self._array = self._stack.enter_context(folder.writing(f"embeddings-{self._shard:05d}"))
        self._file = self._stack.enter_context(self._array.open("wb"))
        header: Any = {"descr": self._dtype.str, "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def put(self, positions: Sequence[int], vectors_ND: np.ndarray) -> None:
        """Store the embeddings of the rows at these positions of the shard.

        Written, not mapped: a full disk is then an error, where a mapped page would end the process.

        Raises:
            ValueError: an embedding that is not finite.
        """
        broken = ~np.isfinite(vectors_ND).all(axis=1)
        if broken.any():
            row = self._rows[positions[int(np.flatnonzero(broken)[0])]]
            raise ValueError(f"{row.at}: its embedding is not finite; use dtype bfloat16 or float32")
        stored_NW = quantised(vectors_ND, self._job.options.precision, self._ranges_2D).astype(self._dtype, copy=False)
        width = self._shape[1] * self._dtype.itemsize
        for position, stored_W in zip(positions, stored_NW, strict=True):
            self._file.seek(self._start + position * width)
            self._file.write(stored_W.tobytes())

    def finish(self) -> None:
        """Put the shard into place."""
        self._file.flush()
        storage = self._job.options.storage
        with self._folder.writing(f"rows-{self._shard:05d}") as table:
            together = storage == "parquet"
            _write_table(table, self._columns(), np.load(self._array, mmap_mode="r") if together else None)
            paths = [table] if together else [self._array, table]
            written = dict(zip(shard_files(self._shard, storage), paths, strict=True))
            self._folder.finish_shard(self._shard, len(self._rows), written)

    def _columns(self) -> dict[str, list[str]]:
        columns = {"id": [row.id for row in self._rows]}
        return {**columns, "text": [row.text for row in self._rows]} if self._job.options.keep_text else columns


def shard_files(shard: int, storage: str) -> tuple[str, ...]:
    """The names of a shard's files: what holds its embeddings first, what holds ids and texts last."""
    if storage == "parquet":
        return (f"shard-{shard:05d}.parquet",)
    return f"embeddings-{shard:05d}.npy", f"rows-{shard:05d}.parquet"


def _write_table(path: Path, columns: dict[str, list[str]], vectors_NW: np.ndarray | None) -> None:
    """Ids, texts and where given embeddings as Parquet, a row group at a time."""
    fields = [pa.field(name, pa.string(), nullable=False) for name in columns]
    if vectors_NW is not None:
        kind = pa.list_(pa.from_numpy_dtype(vectors_NW.dtype), vectors_NW.shape[1])
        fields.append(pa.field("embedding", kind, nullable=False))
    schema = pa.schema(fields)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, len(columns["id"]), GROUP_ROWS):
            part = slice(start, start + GROUP_ROWS)
            arrays = [pa.array(values[part], pa.string()) for values in columns.values()]
            if vectors_NW is not None:
                flat = pa.array(np.ascontiguousarray(vectors_NW[part]).reshape(-1))
                arrays.append(pa.FixedSizeListArray.from_arrays(flat, type=fields[-1].type))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=GROUP_ROWS)
