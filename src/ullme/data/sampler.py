"""Which rows share a batch: one source, no text twice, no known positive as a negative, every row once an epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from ullme.data.dealing import Shared, deal
from ullme.data.schema import PairDataset
from ullme.data.share import Share
from ullme.data.tables import ROWS_PER_BLOCK
from ullme.data.windows import BatchRef, marks_of, warn_if_unused
from ullme.types import PairExample

_LOG = logging.getLogger(__name__)


#: Tells the mix of sources apart from all else that is drawn from a run's seed.
_MIX = 0x317


class EpochSampler(Sampler[list[Any]]):
    """Yields what tells a batch's rows, in an order that depends on the epoch and not on what was yielded before.

    Attributes:
        batch_size: rows of a global batch.
        epoch: whose batches come next.
        start: batches of this epoch to pass over.
        on_epoch: called with every epoch set, so that a collator can follow.
    """

    batch_size: int
    epoch: int = 0
    start: int = 0
    on_epoch: Callable[[int], None] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for this epoch from now on; another one than before begins at its start."""
        if epoch != self.epoch:
            self.start = 0
        self.epoch = epoch
        if self.on_epoch is not None:
            self.on_epoch(epoch)


class StreamBatchSampler(EpochSampler):
    """References to the batches of ``StreamBatches``, pool by pool in order, the pools mixed at random.

    Nothing is read to make them, so passing over batches of a resumed run costs no time.

    Args:
        counts: batches of each pool in an epoch.
        batch_size: rows of a global batch.
        seed: of the mix.
        on_epoch: called with every epoch set.
        rank: the process whose rows of the batches are wanted; by default this one.
        world_size: how many processes share every batch.
    """

    def __init__(
        self,
        counts: Sequence[int],
        batch_size: int,
        seed: int = 0,
        on_epoch: Callable[[int], None] | None = None,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.counts, self.batch_size, self.seed, self.on_epoch = tuple(counts), batch_size, seed, on_epoch
        self.share = Share(rank, world_size)

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[list[BatchRef]]:
        epoch, start, self.start = self.epoch, self.start, 0
        rng = np.random.default_rng([_MIX, self.seed, epoch])
        pool_X = rng.permutation(np.repeat(np.arange(len(self.counts)), self.counts))
        seen = np.bincount(pool_X[:start], minlength=len(self.counts)).tolist()
        rank, world_size = self.share.rank, self.share.world_size  # a worker that reads the batch is in no group
        for pool in pool_X[start:].tolist():
            yield [BatchRef(epoch, pool, seen[pool], rank, world_size)]
            seen[pool] += 1


class PairBatchSampler(EpochSampler):
    """Batches of rows such that every row comes once an epoch and no two rows of a batch share a text.

    Two rows share a text when a query or positive of one is a query or positive of the other: each would be the
    other's false negative. Nor does a row with more positives than its batch has meet one whose negatives hold one of
    them, unless either opts out of in-batch negatives: of what a batch has, the loss masks what is equal, but it cannot
    know a positive that was not chosen. ``len`` is exact and the same for every epoch. It is ceil(rows / batch_size)
    per source, more only where texts repeat so often that they need more batches; then some batches are small.

    The order depends on ``(seed, epoch)`` alone, so a resumed run skips the batches it has seen
    (``accelerate.skip_first_batches``). With several ranks each yields rows ``rank::world_size`` of the same global
    batches: as many batches on every rank, of sizes that differ by one at most and may be 0.

    sentence-transformers' NoDuplicatesBatchSampler does not fit: its length is an estimate, it may repeat rows to
    reach it, and it also keeps apart rows that share a hard negative.

    Attributes:
        batch_size: rows of a global batch.
        drop_last: leave out batches that are not full.
        one_source: every batch from one source of the dataset.
        unique_texts: no text twice in a batch, and no known positive as a negative.
        positives_per_query: positives of a row that its batch has, as the collator has it.
        rank: the process whose rows it yields; by default this one, as ``torch.distributed`` says in each iteration.
        world_size: how many processes share every batch; by default in the same way.
        on_epoch: called with every epoch set.
    """

    def __init__(
        self,
        dataset: PairDataset,
        batch_size: int,
        *,
        seed: int = 0,
        drop_last: bool = False,
        one_source: bool = True,
        unique_texts: bool = True,
        positives_per_query: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
        on_epoch: Callable[[int], None] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} is less than 1; give the rows of one batch")
        self.batch_size, self.drop_last, self.seed = batch_size, drop_last, seed
        self.share, self.on_epoch = Share(rank, world_size), on_epoch
        self._parts = dataset.source_rows() if one_source else [range(len(dataset))]
        self._shared: Shared = {}
        if unique_texts:
            self._shared = marks_of(*dataset.text_keys(), _rows_of(dataset), positives_per_query)
        self._counts = [len(self._dealt(part, epoch=0)) for part in range(len(self._parts))]
        self._warn_of_small_batches(dataset.sources if one_source else [", ".join(dataset.sources)])
        if not len(self):
            raise ValueError(f"batch_size: {len(dataset)} rows fill no batch of {batch_size}; lower batch_size")

    def __len__(self) -> int:
        return sum(self._counts)

    def __iter__(self) -> Iterator[list[int]]:
        start, self.start = self.start, 0
        rank, world_size = self.share.rank, self.share.world_size
        for batch in self.global_batches()[start:]:
            yield batch[rank::world_size]

    def global_batches(self) -> list[list[int]]:
        """This epoch's batches, whole, in their order."""
        batches = [batch for part in range(len(self._parts)) for batch in self._counted(part)]
        order = np.random.default_rng([self.seed, self.epoch, len(self._parts)]).permutation(len(batches))
        return [batches[i] for i in order]

    def _warn_of_small_batches(self, names: Sequence[str]) -> None:
        for name, rows, count in zip(names, self._parts, self._counts, strict=True):
            warn_if_unused(name, len(rows), count, self.batch_size)
            full = -(-len(rows) // self.batch_size)
            if count > 1.1 * full + 1:
                _LOG.warning(
                    "%s: some texts repeat so often that its rows need %d batches of %d instead of %d; "
                    "remove repetitions, or set unique_texts to false (the loss masks equal texts that a batch has)",
                    *(name, count, self.batch_size, full),
                )

    def _counted(self, part: int) -> list[list[int]]:
        """A source's batches in this epoch, as many as in every other epoch.

        The deal of rows that share texts may come out a batch longer or shorter, but the Trainer takes one length for
        all epochs: a longer one falls back to the first epoch's batches, a shorter one halves its largest batch.
        """
        batches, count = self._dealt(part, self.epoch), self._counts[part]
        if self.drop_last:
            return batches[:count] if len(batches) >= count else self._dealt(part, epoch=0)
        if len(batches) > count:
            return self._dealt(part, epoch=0)
        while len(batches) < count:
            batches.sort(key=len)
            largest = batches.pop()
            batches += [largest[::2], largest[1::2]]
        return batches

    def _dealt(self, part: int, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, epoch, part])
        batches = deal(self._parts[part], self._shared, self.batch_size, rng)
        return [batch for batch in batches if len(batch) == self.batch_size] if self.drop_last else batches


def _rows_of(dataset: PairDataset) -> Iterator[PairExample]:
    for start in range(0, len(dataset), ROWS_PER_BLOCK):
        yield from dataset.__getitems__(range(start, min(start + ROWS_PER_BLOCK, len(dataset))))
