"""Rows dealt into batches in which no text comes twice: index arithmetic that knows neither texts nor tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

#: Per row, the texts (by key) that it shares with some other row; a row that shares none is left out.
Shared = Mapping[int, Sequence[int]]


def shared_texts(row_X: np.ndarray, key_X: np.ndarray) -> dict[int, list[int]]:
    """The shared texts of every row, from one (row, key) pair per text."""
    pairs_X2 = np.unique(np.stack([row_X, key_X], axis=1), axis=0)
    _, which_X, count_K = np.unique(pairs_X2[:, 1], return_inverse=True, return_counts=True)
    shared: dict[int, list[int]] = {}
    for row, key in pairs_X2[count_K[which_X] > 1].tolist():
        shared.setdefault(row, []).append(key)
    return shared


def deal(rows: Sequence[int], shared: Shared, batch_size: int, rng: np.random.Generator) -> list[list[int]]:
    """Every row once, shuffled, in batches of at most ``batch_size`` whose rows share no text.

    As few batches as rows and repeats demand: ceil(rows / batch_size), or as many as the most repeated text has rows.
    """
    counts = Counter(key for row in rows for key in shared.get(row, ()))
    needed = max(-(-len(rows) // batch_size), max(counts.values(), default=1))
    batches, left_over = deal_into(needed, rows, shared, batch_size, rng)
    more = deal(left_over, shared, batch_size, rng) if left_over else []
    return [batch for batch in batches if batch] + more


def deal_into(
    count: int, rows: Sequence[int], shared: Shared, batch_size: int, rng: np.random.Generator
) -> tuple[list[list[int]], list[int]]:
    """The rows, shuffled, in ``count`` batches whose rows share no text, and the rows that no batch can take.

    Only the last batch is not full, unless rows are left over: those of a text that every batch with room has already.
    Rows that share texts are dealt first, the most repeated text before others, each to a batch at random; the rest
    fill the room that is left.
    """
    assert len(rows) <= count * batch_size
    shuffled: list[int] = rng.permutation(np.asarray(rows, dtype=np.int64)).tolist()
    counts = Counter(key for row in shuffled for key in shared.get(row, ()))
    repeats = {row: max((counts[key] for key in shared.get(row, ())), default=1) for row in shuffled}
    table = _Table(count, batch_size, last=len(shuffled) - (count - 1) * batch_size)
    tied = sorted((row for row in shuffled if repeats[row] > 1), key=lambda row: -repeats[row])
    left_over = []
    for row in tied:
        texts = shared[row]
        most = max(texts, key=lambda key: counts[key])
        start = table.next_of.get(most)
        if not table.place(row, texts, most, int(rng.integers(count)) if start is None else start):
            left_over.append(row)
    table.fill([row for row in shuffled if repeats[row] == 1])
    return table.batches, left_over


@dataclass
class _Table:
    """Batches being filled.

    ``_open[b]`` leads to the first batch from ``b`` on that has room (a union-find forest; the last entry is a wall),
    ``next_of`` holds for a text the batch to try next, so that a text's rows never scan the same batch twice.
    """

    count: int
    batch_size: int
    last: int
    batches: list[list[int]] = field(init=False)
    next_of: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batches = [[] for _ in range(self.count)]
        self._texts: list[set[int]] = [set() for _ in range(self.count)]
        self._open = list(range(self.count + 1))
        self._room = [self.batch_size] * self.count
        if 0 < self.last < self.batch_size:  # the uneven rest is the last batch, and the others are full
            self._room[-1] = self.last

    def place(self, row: int, texts: Sequence[int], most: int, start: int) -> bool:
        """Put a row into the first batch from ``start`` on, round once, that has room and none of its texts."""
        for begin, end in ((start, self.count), (0, start)):
            at = self._first_open(begin)
            while at < end:
                if self._texts[at].isdisjoint(texts):
                    self._put(row, at)
                    self._texts[at].update(texts)
                    self.next_of[most] = (at + 1) % self.count
                    return True
                at = self._first_open(at + 1)
        return False

    def fill(self, rows: Sequence[int]) -> None:
        """Put rows that share no text wherever there is room."""
        for row in rows:
            self._put(row, self._first_open(0))

    def _put(self, row: int, at: int) -> None:
        self.batches[at].append(row)
        if len(self.batches[at]) == self._room[at]:
            self._open[at] = at + 1

    def _first_open(self, at: int) -> int:
        root = at
        while self._open[root] != root:
            root = self._open[root]
        while self._open[at] != root:
            self._open[at], at = root, self._open[at]
        return root
