"""A loader of batches, split over the ranks, that can be resumed at any batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from ullme import distributed
from ullme.data.collator import PairCollator
from ullme.data.sampler import EpochSampler, PairBatchSampler, StreamBatchSampler
from ullme.data.schema import PairDataset
from ullme.data.share import Share
from ullme.data.stream import PairStream
from ullme.data.windows import SHUFFLE_ROWS, StreamBatches
from ullme.types import PairExample

#: How torch states an error of a worker, before the error's own words.
_IN_WORKER = "in DataLoader worker process"


class PairLoader(DataLoader[PairExample]):
    """A DataLoader of ``Batch`` whose ``set_epoch`` reaches its batch sampler, and through it the collator.

    Its length is that of every rank, and the same before the processes have joined. So is its place, ``(epoch, batches
    taken)``: ``transformers.Trainer`` restores it by ``skip_first_batches``; a loop of one's own by ``state_dict`` and
    ``load_state_dict``. Neither reads what is passed over.
    """

    _taken = 0

    def set_epoch(self, epoch: int) -> None:
        """Shuffle, and sample passages, for this epoch from now on."""
        self._sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Where the last iteration stands: batches that were prefetched and not taken do not count."""
        return {"epoch": self._sampler.epoch, "batch": self._taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration begin where ``state_dict`` was called; those of later epochs begin at their start."""
        self._sampler.set_epoch(state["epoch"])
        self._sampler.start = self._taken = state["batch"]

    def __iter__(self) -> Any:
        """Batches of the epoch from the start, or from where a state was loaded."""
        return self._batches()

    def _batches(self) -> Iterator[Any]:
        self._taken = self._sampler.start
        try:
            for batch in super().__iter__():
                self._taken += 1
                yield batch
        except ValueError as error:
            if _IN_WORKER not in str(error):
                raise
            raise ValueError(str(error).rstrip().rpartition("ValueError: ")[2]) from error

    @property
    def _sampler(self) -> EpochSampler:
        assert isinstance(self.batch_sampler, EpochSampler)
        return self.batch_sampler


def train_loader(
    dataset: PairDataset | PairStream,
    collator: PairCollator,
    batch_size: int,
    *,
    seed: int = 0,
    drop_last: bool = False,
    one_source: bool = True,
    unique_texts: bool = True,
    shuffle_rows: int = SHUFFLE_ROWS,
    rank: int | None = None,
    world_size: int | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> PairLoader:
    """A loader of this rank's share of every global batch of ``batch_size`` rows.

    The global batches are the same for every number of ranks and workers. Hand the loader to the trainer as it is: it
    is already split over the ranks, so accelerate must not split it again. Which rank this is it finds out each time
    that it is iterated, so that it may be made before the processes have joined.

    Args:
        dataset: pairs in memory (``load_pairs``), or read while training goes on (``stream_pairs``).
        collator: rows to ``Batch``.
        batch_size: rows of a global batch: of all processes together.
        seed: of all that is shuffled.
        drop_last: leave out batches that are not full; of a stream the uneven rest of an epoch.
        one_source: every batch from one source.
        unique_texts: no text twice in a batch.
        shuffle_rows: rows of a stream, or of sources with weights, that are held and shuffled together.
        rank: this process; by default as ``torch.distributed`` says when the loader is iterated.
        world_size: how many processes share every batch; by default in the same way.
        num_workers: processes that prepare batches.
        pin_memory: copy batches into pinned memory.
    """
    whose: dict[str, Any] = {"rank": rank, "world_size": world_size}
    shared: dict[str, Any] = {"collate_fn": collator, "num_workers": num_workers, "pin_memory": pin_memory}
    options: dict[str, Any] = {"seed": seed, "drop_last": drop_last, "one_source": one_source}
    options |= {"unique_texts": unique_texts, "positives_per_query": collator.positives_per_query}
    if isinstance(dataset, PairDataset) and dataset.weights is None:
        sampler = PairBatchSampler(dataset, batch_size, on_epoch=collator.set_epoch, **whose, **options)
        return PairLoader(dataset, batch_sampler=sampler, **shared)
    batches = StreamBatches(dataset, batch_size, shuffle_rows=shuffle_rows, **options)
    counts = [pool.batches for pool in batches.pools]
    references = StreamBatchSampler(counts, batch_size, seed, collator.set_epoch, **whose)
    return PairLoader(batches, batch_sampler=references, **shared)


def require_share_of_running(loader: object) -> None:
    """Pass unless a loader splits its batches, and otherwise than over the processes that run.

    Raises:
        ValueError: it does, so that rows would be trained on twice, or left out.
    """
    share = getattr(getattr(loader, "batch_sampler", None), "share", None)
    if not isinstance(share, Share):
        return
    running, cure = distributed.world_size(), "leave rank and world_size out of ullme.data.train_loader(...)"
    if share.world_size != running:
        several = "" if share.world_size == 1 else "es"
        raise ValueError(
            f"train_loader: its batches are for {share.world_size} process{several} and {running} run; {cure}"
        )
    if share.rank != distributed.rank():
        raise ValueError(f"train_loader: its rows are those of rank {share.rank}, this is {distributed.rank()}; {cure}")
