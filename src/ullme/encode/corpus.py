"""A corpus on disk, opened: its embeddings in blocks, its ids and texts by row."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ullme.encode.folder import RANGES, CorpusFolder, file_record
from ullme.encode.job import Job
from ullme.encode.precision import restored
from ullme.encode.shards import GROUP_ROWS, shard_files
from ullme.encode.source import TextSource

#: Rows of a block, a whole number of row groups: the memory of a search.
_BLOCK_ROWS = 4 * GROUP_ROWS


@dataclass(frozen=True)
class Entry:
    """One row of a corpus: its number from 0, its id and its text; None where the corpus keeps no texts."""

    row: int
    id: str
    text: str | None


class EmbeddedCorpus:
    """A folder written by ``ullme encode``, complete; nothing is read before it is asked for.

    Attributes:
        path: the folder.
        manifest: what it says of itself: model, options, source, shards with digests.
        job: the same, typed.

    Raises:
        ValueError: the folder is no corpus, or an unfinished one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        folder = CorpusFolder(self.path)
        job = folder.begun() if self.path.is_dir() else None
        if job is None:
            raise ValueError(f"{str(self.path)!r} is no corpus; name a folder written by ullme encode")
        if not folder.complete:
            raise ValueError(f"{str(self.path)!r} is not finished; run the same ullme encode command again")
        self.job: Job = job
        self.manifest: dict[str, Any] = folder.manifest()
        self._starts = [0, *accumulate(shard["rows"] for shard in self.manifest["shards"])]
        self._ranges_2D = np.load(self.path / RANGES) if job.options.sample_rows else None

    def __len__(self) -> int:
        return self._starts[-1]

    def stored_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The embeddings as they are stored, with the number of the first row of each block."""
        for shard in range(self.job.shards):
            for start, block in self._shard_blocks(shard):
                yield self._starts[shard] + start, block

    def stored(self, rows: Sequence[int]) -> np.ndarray:
        """The embeddings of these rows as they are stored."""
        found = [self._stored_row(row) for row in rows]
        return np.stack(found)

    def restored(self, stored_NW: np.ndarray) -> np.ndarray:
        """Stored embeddings as float32 (N, D)."""
        return restored(stored_NW, self.job.options.precision, self._ranges_2D, self.job.dimension)

    def entries(self, rows: Sequence[int], source: TextSource | None = None) -> list[Entry]:
        """Ids and texts of these rows; texts from ``source`` where it is given, which is read as far as needed.

        Raises:
            ValueError: another source than was encoded.
        """
        kept = [self._entry(row) for row in rows]
        if source is None:
            return kept
        wanted, texts = set(rows), {}
        for number, found in enumerate(source.rows()):
            if number in wanted:
                texts[number] = found
            if len(texts) == len(wanted):
                break
        for entry in kept:
            if entry.row not in texts or texts[entry.row].id != entry.id:
                raise ValueError(
                    f"{source.path}: row {entry.row + 1} is not {entry.id!r}, as in {str(self.path)!r}; "
                    "give the source that was encoded"
                )
        return [Entry(entry.row, entry.id, texts[entry.row].text) for entry in kept]

    def source(self, path: Path | None) -> TextSource | None:
        """The source at another path, read as the corpus's own was; None for None.

        Raises:
            ValueError: there is none, or its first row cannot be read.
        """
        if path is None:
            return None
        found = replace(self.job.source, path=path)
        next(found.rows())
        return found

    def check(self) -> None:
        """Read every file and compare it with the manifest.

        Raises:
            ValueError: a file that is missing or was changed.
        """
        files = {n: f for shard in self.manifest["shards"] for n, f in shard["files"].items()}
        for name, known in {**files, **(self.manifest["ranges"] or {})}.items():
            path = self.path / name
            if not path.is_file() or file_record(path) != known:
                raise ValueError(f"{str(path)!r} is missing or damaged; restore it, or encode into a new folder")

    def _shard_blocks(self, shard: int) -> Iterator[tuple[int, np.ndarray]]:
        path = self.path / shard_files(shard, self.job.options.storage)[0]
        if self.job.options.storage == "npy":
            array = np.load(path, mmap_mode="r")
            yield from ((start, array[start : start + _BLOCK_ROWS]) for start in range(0, len(array), _BLOCK_ROWS))
            return
        start = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BLOCK_ROWS, columns=["embedding"]):
                yield start, _embeddings(batch)
                start += len(batch)

    def _stored_row(self, row: int) -> np.ndarray:
        shard, at = self._place(row)
        path = self.path / shard_files(shard, self.job.options.storage)[0]
        if self.job.options.storage == "npy":
            return np.array(np.load(path, mmap_mode="r")[at])
        with pq.ParquetFile(path) as file:
            return _embeddings(file.read_row_group(at // GROUP_ROWS, columns=["embedding"]))[at % GROUP_ROWS]

    def _entry(self, row: int) -> Entry:
        shard, at = self._place(row)
        columns = ["id", "text"] if self.job.options.keep_text else ["id"]
        with pq.ParquetFile(self.path / shard_files(shard, self.job.options.storage)[-1]) as file:
            found = file.read_row_group(at // GROUP_ROWS, columns=columns).slice(at % GROUP_ROWS, 1).to_pylist()[0]
        return Entry(row, found["id"], found.get("text"))

    def _place(self, row: int) -> tuple[int, int]:
        shard = bisect_right(self._starts, row) - 1
        return shard, row - self._starts[shard]


def _embeddings(batch: Any) -> np.ndarray:
    """The column of embeddings as an array (N, W)."""
    column = batch.column("embedding")
    column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(batch), -1)
