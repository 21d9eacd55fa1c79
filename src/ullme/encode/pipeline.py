"""The work of one process: shards read and tokenised ahead in a thread, embedded, written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ullme.encode.embedder import Embedder
from ullme.encode.folder import RANGES, CorpusFolder
from ullme.encode.job import Job
from ullme.encode.precision import calibrated_ranges
from ullme.encode.shards import ShardReader, ShardRows, ShardWriter

#: Texts that are made ready, and then embedded, at once; their neighbours in length share it.
WINDOW_ROWS = 1024
#: Windows that may be ready before they are needed: one in hand while the next is made.
_AHEAD = 2

#: Called with rows and characters done since the last call.
Advance = Callable[[int, int], None]
_T = TypeVar("_T")


class _Window(NamedTuple):
    rows: ShardRows
    positions: list[int]
    prepared: Any


def encode_shards(
    job: Job,
    embedder: Embedder,
    shards: Iterable[int],
    reader: ShardReader | None = None,
    advance: Advance = lambda rows, characters: None,
) -> None:
    """Write these shards of a job. What a shard holds does not depend on which others are written, or in which order.

    Args:
        job: what is encoded, and where to.
        embedder: texts to embeddings.
        shards: numbers of shards; best in ascending order, in which the source is read once.
        reader: kept by a caller that asks several times.
        advance: progress.

    Raises:
        ValueError: the source changed, or an embedding is not finite.
    """
    folder = CorpusFolder(job.output)
    ranges = job.output / RANGES
    ranges_2D = np.load(ranges) if job.options.sample_rows else None
    writer: ShardWriter | None = None
    missing = 0
    with ExitStack() as stack:
        for window in _ahead(_windows(embedder, shards, reader or ShardReader(job))):
            if writer is None:
                writer = stack.enter_context(ShardWriter(job, folder, window.rows, ranges_2D))
                missing = len(window.rows.rows)
            writer.put(window.positions, embedder.embed(window.prepared))
            missing -= len(window.positions)
            advance(len(window.positions), sum(len(window.rows.rows[i].text) for i in window.positions))
            if not missing:
                writer.finish()
                stack.close()
                writer = None


def calibrate(job: Job, embedder: Embedder, sample: tuple[str, ...]) -> None:
    """Write the ranges of the dimensions over these texts, unless they are there or the precision needs none."""
    if not job.options.sample_rows or (job.output / RANGES).is_file():
        return
    parts = [sample[start : start + WINDOW_ROWS] for start in range(0, len(sample), WINDOW_ROWS)]
    vectors_ND = np.concatenate([embedder.embed(embedder.prepare(part)) for part in parts])

    def write(path: Any) -> None:
        with path.open("wb") as file:
            np.save(file, calibrated_ranges(vectors_ND))

    CorpusFolder(job.output).place(RANGES, write)


def _windows(embedder: Embedder, shards: Iterable[int], reader: ShardReader) -> Iterator[_Window]:
    """The rows of each shard, longest first: neighbours go well together, and what is too much fails early."""
    for shard in shards:
        found = reader.read(shard)
        order = sorted(range(len(found.rows)), key=lambda i: -len(found.rows[i].text))
        for start in range(0, len(order), WINDOW_ROWS):
            positions = order[start : start + WINDOW_ROWS]
            yield _Window(found, positions, embedder.prepare([found.rows[i].text for i in positions]))


def _ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The same items, made in a thread before they are asked for; its errors are raised here."""
    with ThreadPoolExecutor(1, thread_name_prefix="texts") as pool:
        waiting = deque(pool.submit(_next, items) for _ in range(_AHEAD))
        try:
            while item := waiting.popleft().result():
                waiting.append(pool.submit(_next, items))
                yield item[0]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _next(items: Iterator[_T]) -> list[_T]:
    """The next item, alone in a list; an empty list after the last."""
    return list(islice(items, 1))
