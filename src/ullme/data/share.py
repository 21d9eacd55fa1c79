"""Which rows of every global batch are a process's own."""

from __future__ import annotations

from dataclasses import dataclass

from ullme import distributed


@dataclass(frozen=True)
class Share:
    """Rows ``rank::world_size`` of every batch.

    What is None is as ``torch.distributed`` says whenever it is asked for: a loader is often made before the processes
    have joined, which they do where the training arguments are made.
    """

    given_rank: int | None = None
    given_world_size: int | None = None

    @property
    def rank(self) -> int:
        """This process's number; 0, of whole batches, until it has joined the others (``--dry-run`` never does)."""
        if self.given_rank is not None:
            return self.given_rank
        return distributed.rank() if distributed.is_distributed() else 0

    @property
    def world_size(self) -> int:
        """How many processes share every batch."""
        return distributed.world_size() if self.given_world_size is None else self.given_world_size
