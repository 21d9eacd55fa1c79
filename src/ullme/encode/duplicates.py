"""Whether ids are unique, at a memory that does not grow with their number."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from types import TracebackType
from typing import IO

import numpy as np

#: Rows that are compared in memory at once, and rows that are written at once.
_AT_ONCE, _BUFFERED = 2**20, 2**14
#: 128 bits of a hash and the row's number.
_RECORD = np.dtype([("high", np.uint64), ("low", np.uint64), ("row", np.int64)])


class SeenIds:
    """Ids by their hashes, in a temporary file; one pass over it per million finds the first that occurs twice."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()
        self._buffer = bytearray()
        self._rows = 0

    def __enter__(self) -> SeenIds:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, name: bytes) -> None:
        """Take the id of the next row."""
        self._buffer += hashlib.blake2b(name, digest_size=16).digest()
        self._buffer += self._rows.to_bytes(8, "little")
        self._rows += 1
        if self._rows % _BUFFERED == 0:
            self._flush()

    def first_repeated(self) -> tuple[int, int] | None:
        """The first row (from 0) whose id an earlier row has, after that earlier row; None where all differ."""
        self._flush()
        parts = -(-self._rows // _AT_ONCE)
        found = [pair for part in range(parts) for pair in self._repeated(part, parts)]
        return min(found, key=lambda pair: pair[1], default=None)

    def _repeated(self, part: int, parts: int) -> Iterator[tuple[int, int]]:
        """Of the ids of one part, which the hash decides: the first repeated pair."""
        chosen = np.concatenate([block[block["high"] % np.uint64(parts) == part] for block in self._blocks()])
        ordered = chosen[np.lexsort((chosen["row"], chosen["low"], chosen["high"]))]
        same = (ordered["high"][1:] == ordered["high"][:-1]) & (ordered["low"][1:] == ordered["low"][:-1])
        if same.any():
            at = np.flatnonzero(same)
            first = at[np.argmin(ordered["row"][at + 1])]
            yield int(ordered["row"][first]), int(ordered["row"][first + 1])

    def _blocks(self) -> Iterator[np.ndarray]:
        self._file.seek(0)
        while block := self._file.read(_BUFFERED * _RECORD.itemsize):
            yield np.frombuffer(block, dtype=_RECORD)

    def _flush(self) -> None:
        self._file.seek(0, 2)
        self._file.write(self._buffer)
        self._buffer.clear()
