"""A first pass over a source, before a model is loaded: is every row usable, how many are there, which are they."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from ullme.encode.duplicates import SeenIds
from ullme.encode.source import TextRow, TextSource

#: Rows between two calls of ``advance``.
_STEP = 1000


@dataclass(frozen=True)
class Survey:
    """What one pass over a source tells.

    Attributes:
        rows: how many there are.
        characters: of all texts together, by which progress is measured.
        digest: a hash of all ids and texts in their order, whatever file they stand in.
        shard_digests: the same of each shard's rows.
        shard_characters: of each shard's texts.
        sample: texts for calibration, the rows with the smallest hashes: a random choice, the same every time.
    """

    rows: int
    characters: int
    digest: str
    shard_digests: tuple[str, ...]
    shard_characters: tuple[int, ...]
    sample: tuple[str, ...]


def survey(
    source: TextSource, shard_rows: int, sample_rows: int = 0, advance: Callable[[int], None] = lambda rows: None
) -> Survey:
    """Read all rows once, at a memory that does not grow with their number.

    Args:
        source: the texts.
        shard_rows: rows of a shard.
        sample_rows: texts to choose for calibration.
        advance: called with the number of rows read since the last call.

    Raises:
        ValueError: a row that cannot be read, is empty or of a wrong type, or an id that two rows share, by file and
            row.
    """
    whole, shards, characters, sample = hashlib.sha256(), [hashlib.sha256()], [0], _Sample(sample_rows)
    rows = 0
    with SeenIds() as seen:
        for row in source.rows():
            if rows and rows % shard_rows == 0:
                shards.append(hashlib.sha256())
                characters.append(0)
            content, name = row_bytes(row)
            whole.update(content)
            shards[-1].update(content)
            sample.offer(content, row.text)
            seen.add(name)
            rows += 1
            characters[-1] += len(row.text)
            if rows % _STEP == 0:
                advance(_STEP)
        repeated = seen.first_repeated()
    if repeated is not None:
        raise ValueError(_shared_id(source, *repeated))
    digests = tuple(shard.hexdigest() for shard in shards)
    return Survey(rows, sum(characters), whole.hexdigest(), digests, tuple(characters), sample.texts())


def row_bytes(row: TextRow) -> tuple[bytes, bytes]:
    """A row as bytes that no other row has, and its id as bytes.

    Raises:
        ValueError: half a surrogate pair, which JSON can spell and no text is.
    """
    try:
        name, text = row.id.encode(), row.text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{row.at}: {error.object[error.start]!r} is no character; remove it from the row") from error
    return b"%d %d %b%b" % (len(name), len(text), name, text), name


class _Sample:
    """The texts whose rows have the smallest hashes, in the order of these."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[tuple[int, str]] = []  # a heap, the largest hash (negated) first

    def offer(self, content: bytes, text: str) -> None:
        if not self._size:
            return
        entry = (-int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big"), text)
        if len(self._kept) < self._size:
            heapq.heappush(self._kept, entry)
        elif entry > self._kept[0]:
            heapq.heapreplace(self._kept, entry)

    def texts(self) -> tuple[str, ...]:
        return tuple(text for _, text in sorted(self._kept, reverse=True))


def _shared_id(source: TextSource, first: int, second: int) -> str:
    """The complaint about an id that two rows (from 0) share; reads the source again, to say where they stand."""
    rows = source.rows()
    earlier = next(islice(rows, first, None))
    later = next(islice(rows, second - first - 1, None))
    return f"{later.at}: id: {later.id!r} stands in {earlier.at} too; give each row an id of its own"
