"""Which rows meet in which batch where only some are at hand: epochs over endless sources, in windows."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from ullme.data.dealing import Shared, deal_into, kept_apart, shared_texts
from ullme.data.schema import PairDataset
from ullme.data.stream import HeldRows, PairStream, RowSequence
from ullme.data.tables import text_key
from ullme.types import PairExample

_LOG = logging.getLogger(__name__)

#: Tells the deals of windows apart from all else that is drawn from a run's seed.
_DEAL = 0xDEA1
#: Batches of a window at least, so that a text that comes again finds a batch without it.
_LEAST_BATCHES = 4

#: Rows that are held and shuffled together, unless told otherwise.
SHUFFLE_ROWS = 16384


@dataclass(frozen=True)
class BatchRef:
    """One global batch: its pool, its place among that pool's batches of the epoch, and whose rows of it are wanted."""

    epoch: int
    pool: int
    batch: int
    rank: int = 0
    world_size: int = 1


class Pool:
    """Sources whose rows meet in batches, and how an epoch takes rows from each.

    An epoch takes ``shares[i]`` rows from source i and goes on where the last one stopped, so that all of a source's
    rows come before any comes again. The rows of an epoch come in windows of whole batches, each with its part of every
    source; which rows a window has is known without reading others.

    Attributes:
        batches: of an epoch.
        window_batches: of a window; the last one may have fewer.
    """

    def __init__(
        self,
        sources: Sequence[RowSequence],
        shares: Sequence[int],
        batch_size: int,
        window_batches: int,
        drop_last: bool,
    ) -> None:
        rows = sum(shares)
        self.batches = rows // batch_size if drop_last else -(-rows // batch_size)
        self.window_batches, self.shares = window_batches, tuple(shares)
        self._sources, self._batch_size = tuple(sources), batch_size
        windows = -(-self.batches // window_batches)
        ends = np.arange(windows + 1, dtype=np.int64) * window_batches * batch_size
        self._ends = proportional(shares, np.minimum(ends, min(rows, self.batches * batch_size)))

    def window(self, epoch: int, number: int, seed: int) -> list[PairExample]:
        """The rows of a window, source by source."""
        found: list[PairExample] = []
        edges = zip(self._sources, self.shares, *self._ends[number : number + 2].tolist(), strict=True)
        for source, share, start, stop in edges:
            found += source.take(epoch * share + start, epoch * share + stop, seed)
        return found

    def dealt(
        self, rows: Sequence[PairExample], shared: Shared, rng: np.random.Generator
    ) -> tuple[list[list[PairExample]], list[PairExample]]:
        """A window's rows in its batches, and those left out because they may not meet a row of any batch with room."""
        count = -(-len(rows) // self._batch_size)
        batches, left_out = deal_into(count, range(len(rows)), shared, self._batch_size, rng)
        order = rng.permutation(count).tolist()
        return [[rows[i] for i in batches[b]] for b in order], [rows[i] for i in left_out]


class StreamBatches(Dataset[PairExample]):
    """Global batches by reference, so that any process finds the rows of any batch by itself.

    A batch depends on the sources, its reference and the arguments below alone, not on ranks, workers or what was read
    before: each process reads the window that the batch is of, every row of it (so that all ranks find the same error),
    and keeps the rows that the reference asks for.

    Args:
        data: the sources, in memory or as a stream.
        batch_size: rows of a global batch.
        seed: of all that is shuffled.
        drop_last: leave out the uneven rest of each epoch.
        one_source: every batch from one source.
        unique_texts: no text twice in a batch, and no known positive as a negative, as for ``PairBatchSampler``.
        positives_per_query: positives of a row that its batch has, as the collator has it.
        shuffle_rows: rows that are held and shuffled together, of all pools; at least four batches of each.

    Raises:
        ValueError: a pool fills no batch.
    """

    def __init__(
        self,
        data: PairStream | PairDataset,
        batch_size: int,
        *,
        seed: int = 0,
        drop_last: bool = False,
        one_source: bool = True,
        unique_texts: bool = True,
        positives_per_query: int = 1,
        shuffle_rows: int = SHUFFLE_ROWS,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} is less than 1; give the rows of one batch")
        sources: list[RowSequence] = (
            list(data.rows) if isinstance(data, PairStream) else [HeldRows(data, i) for i in range(len(data.sources))]
        )
        shares = epoch_shares([source.rows for source in sources], data.weights)
        members = [[i] for i in range(len(sources))] if one_source else [list(range(len(sources)))]
        window = max(shuffle_rows // (batch_size * len(members)), _LEAST_BATCHES)
        self.pools = [
            Pool([sources[i] for i in pool], [shares[i] for i in pool], batch_size, window, drop_last)
            for pool in members
        ]
        self._names = [", ".join(data.sources[i] for i in pool) for pool in members]
        if not any(pool.batches for pool in self.pools):
            raise ValueError(f"batch_size: {len(data)} rows fill no batch of {batch_size}; lower batch_size")
        for name, pool in zip(self._names, self.pools, strict=True):
            warn_if_unused(name, sum(pool.shares), pool.batches, batch_size)
        self.seed = seed
        self.unique_texts, self.positives_per_query = unique_texts, positives_per_query
        self._held: dict[int, tuple[tuple[int, int], list[list[PairExample]]]] = {}
        self._told: set[int] = set()

    def __len__(self) -> int:
        """Rows of an epoch."""
        return sum(sum(pool.shares) for pool in self.pools)

    def __getitems__(self, refs: Sequence[BatchRef]) -> list[PairExample]:
        """The rows of one batch that are wanted: what a DataLoader calls."""
        (ref,) = refs
        return self.global_batch(ref)[ref.rank :: ref.world_size]

    def global_batch(self, ref: BatchRef) -> list[PairExample]:
        """All rows of a batch.

        Raises:
            ValueError: a row of its window is wrong; names its file and number.
        """
        window, place = divmod(ref.batch, self.pools[ref.pool].window_batches)
        key, batches = self._held.get(ref.pool, ((-1, -1), []))
        if key != (ref.epoch, window):
            self._held.pop(ref.pool, None)  # one window of a pool at a time
            batches = self._window(ref, window)
            self._held[ref.pool] = ((ref.epoch, window), batches)
        return batches[place]

    def _window(self, ref: BatchRef, window: int) -> list[list[PairExample]]:
        epoch, pool = ref.epoch, ref.pool
        rows = self.pools[pool].window(epoch, window, self.seed)
        rng = np.random.default_rng([_DEAL, self.seed, epoch, pool, window])
        shared = _marks_of_window(rows, self.positives_per_query) if self.unique_texts else {}
        batches, left_out = self.pools[pool].dealt(rows, shared, rng)
        if left_out and ref.rank == 0 and pool not in self._told:
            self._told.add(pool)
            _LOG.warning(
                "%s: %d of the %d rows that were read together are left out of this epoch, %s among them: their texts "
                "are in every batch already; raise data.shuffle_rows, remove repetitions, or set data.unique_texts to "
                "false (the loss masks equal texts that a batch has)",
                *(self._names[pool], len(left_out), len(rows), left_out[0].row_id),
            )
        return batches

    def __getstate__(self) -> dict[str, object]:
        """All but what was read, for a loader's workers."""
        return {**self.__dict__, "_held": {}}


def epoch_shares(rows: Sequence[int], weights: Sequence[float] | None) -> list[int]:
    """Rows that an epoch takes from each source: all of them once, or as many rows together in these proportions."""
    if weights is None:
        return list(rows)
    return [max(1, round(sum(rows) * weight / sum(weights))) for weight in weights]


def proportional(shares: Sequence[int], ends: np.ndarray) -> np.ndarray:
    """How many rows of each source the first ``ends[w]`` rows of an epoch have, (W, sources).

    Every row of the result adds up to ``ends[w]`` and is nowhere below the row before it, and is within one row or so
    of the sources' proportions.
    """
    share_S = np.asarray(shares, dtype=np.int64)
    found_WS = np.zeros((len(ends), len(share_S)), dtype=np.int64)
    taken_S = np.zeros_like(share_S)
    for w, end in enumerate(ends.tolist()):
        behind_S = end * (share_S / share_S.sum()) - taken_S
        more_S = np.minimum(np.maximum(np.floor(behind_S), 0).astype(np.int64), share_S - taken_S)
        while (rest := end - int(taken_S.sum() + more_S.sum())) != 0:
            able_S = taken_S + more_S < share_S if rest > 0 else more_S > 0
            want_S = np.where(able_S, (behind_S - more_S) * np.sign(rest), -np.inf)
            more_S[int(want_S.argmax())] += int(np.sign(rest))
        taken_S = taken_S + more_S
        found_WS[w] = taken_S
    return found_WS


def warn_if_unused(name: str, rows: int, batches: int, batch_size: int) -> None:
    """Say so where a source fills no batch, and so is not trained on, as ``drop_last`` asks for."""
    if rows and not batches:
        _LOG.warning(
            "%s: its %d rows fill no batch of %d, and drop_last leaves them out; lower the batch size, or set "
            "drop_last or one_source to false",
            *(name, rows, batch_size),
        )


def marks_of(row_X: np.ndarray, key_X: np.ndarray, rows: Iterable[PairExample], positives_per_query: int) -> Shared:
    """What keeps rows out of one batch: a text that both have, or a positive that is the other's negative.

    The second holds of rows with more positives than their batch has, since the loss cannot mask what it does not see;
    not of those that take and give no in-batch negatives.

    Args:
        row_X: row of each text, with ``key_X``; of each row its query and then its positives.
        key_X: keys of these texts.
        rows: all rows in their order; read only where one has more positives than ``positives_per_query``.
        positives_per_query: positives of a row that its batch has.
    """
    shared = shared_texts(row_X, key_X)
    known_X = (np.diff(row_X, prepend=-1) == 0) & (np.bincount(row_X)[row_X] > 1 + positives_per_query)
    if not known_X.any():
        return shared
    wanted, takes, found = set(key_X[known_X].tolist()), [], []
    for i, row in enumerate(rows):
        takes.append(row.in_batch_negatives)
        keys = map(text_key, row.negatives) if row.in_batch_negatives else ()
        found += [(i, key) for key in keys if key in wanted]
    known_X &= np.array(takes)[row_X]
    negative_X2 = np.array(found, dtype=np.int64).reshape(-1, 2)
    marks = kept_apart((row_X[known_X], key_X[known_X]), (negative_X2[:, 0], negative_X2[:, 1]))
    return {row: [*shared.get(row, ()), *marks.get(row, ())] for row in {**shared, **marks}}


def _marks_of_window(rows: Sequence[PairExample], positives_per_query: int) -> Shared:
    """The marks of rows at hand, a row that comes twice among them."""
    keys = [[text_key(row.query), *map(text_key, row.positives)] for row in rows]
    row_X = np.repeat(np.arange(len(rows)), [len(key) for key in keys])
    return marks_of(row_X, np.array([k for key in keys for k in key], dtype=np.int64), rows, positives_per_query)
