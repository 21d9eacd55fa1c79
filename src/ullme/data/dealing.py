"""Rows dealt into batches of rows that may meet: index arithmetic that knows neither texts nor tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

#: Per row, what keeps it from others, as marks; a row that may meet every other is left out. A mark of 0 or more is a
#: text (by key) that no two rows of a batch may have. Marks below 0 come in pairs, m and m ^ 1: no row with one of them
#: may meet a row with the other.
Shared = Mapping[int, Sequence[int]]
#: Rows and, of each, the key of one of its texts; both (X,) int64.
RowKeys = tuple[np.ndarray, np.ndarray]


def shared_texts(row_X: np.ndarray, key_X: np.ndarray) -> dict[int, list[int]]:
    """The shared texts of every row, from one (row, key) pair per text."""
    pairs_X2 = np.unique(np.stack([row_X, key_X], axis=1), axis=0)
    _, which_X, count_K = np.unique(pairs_X2[:, 1], return_inverse=True, return_counts=True)
    shared: dict[int, list[int]] = {}
    for row, key in pairs_X2[count_K[which_X] > 1].tolist():
        shared.setdefault(row, []).append(key)
    return shared


def kept_apart(positives: RowKeys, negatives: RowKeys) -> dict[int, list[int]]:
    """Marks that keep every row with a positive here from the rows that have it among their negatives here."""
    both_K = np.intersect1d(positives[1], negatives[1])
    found: dict[int, list[int]] = {}
    for side, (row_X, key_X) in enumerate((positives, negatives)):
        in_X = np.isin(key_X, both_K)
        pair_X = np.unique(row_X[in_X] * len(both_K) + np.searchsorted(both_K, key_X[in_X]))
        for pair in pair_X.tolist():
            row, k = divmod(pair, len(both_K))
            found.setdefault(row, []).append(side - 2 * (k + 1))
    return found


def deal(rows: Sequence[int], shared: Shared, batch_size: int, rng: np.random.Generator) -> list[list[int]]:
    """Every row once, shuffled, in batches of at most ``batch_size`` whose rows may meet.

    As few batches as rows and repeats demand: ceil(rows / batch_size), or as many as the most repeated text has rows;
    more where rows with negatives find no room beside those that they must not meet.
    """
    batches: list[list[int]] = []
    while len(rows):
        counts = Counter(key for row in rows for key in shared.get(row, ()) if key >= 0)
        needed = max(-(-len(rows) // batch_size), max(counts.values(), default=1))
        dealt, rows = deal_into(needed, rows, shared, batch_size, rng)
        batches += [batch for batch in dealt if batch]
    return batches


def deal_into(
    count: int, rows: Sequence[int], shared: Shared, batch_size: int, rng: np.random.Generator
) -> tuple[list[list[int]], list[int]]:
    """The rows, shuffled, in ``count`` batches whose rows may meet, and the rows that no batch can take.

    Only the last batch is not full, unless rows are left over: those that may not meet a row of any batch with room.
    Rows with marks are dealt first, those that most rows must not meet before others, each to a batch at random; the
    rest fill the room that is left.
    """
    assert len(rows) <= count * batch_size
    shuffled: list[int] = rng.permutation(np.asarray(rows, dtype=np.int64)).tolist()
    counts = Counter(key for row in shuffled for key in shared.get(row, ()))
    apart = {key: counts[_against(key)] + (key < 0) for key in counts}  # rows of which no two may meet, one's with it
    repeats = {row: max((apart[key] for key in shared.get(row, ())), default=1) for row in shuffled}
    table = _Table(count, batch_size, last=len(shuffled) - (count - 1) * batch_size)
    tied = sorted((row for row in shuffled if repeats[row] > 1), key=lambda row: -repeats[row])
    left_over = []
    for row in tied:
        texts = shared[row]
        most = max(texts, key=lambda key: apart[key])
        start = table.next_of.get(most)
        if not table.place(row, texts, most, int(rng.integers(count)) if start is None else start):
            left_over.append(row)
    table.fill([row for row in shuffled if repeats[row] == 1])
    return table.batches, left_over


def _against(mark: int) -> int:
    """The mark that a row with this one must not meet."""
    return mark if mark >= 0 else mark ^ 1


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
        """Put a row into the first batch from ``start`` on, round once, that has room and nothing it must not meet."""
        against = [_against(text) for text in texts]
        for begin, end in ((start, self.count), (0, start)):
            at = self._first_open(begin)
            while at < end:
                if self._texts[at].isdisjoint(against):
                    self._put(row, at)
                    self._texts[at].update(texts)
                    self.next_of[most] = (at + 1) % self.count
                    return True
                at = self._first_open(at + 1)
        return False

    def fill(self, rows: Sequence[int]) -> None:
        """Put rows that may meet every other wherever there is room."""
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
