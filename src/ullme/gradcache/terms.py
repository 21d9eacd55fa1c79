"""The terms of a loss as the step sees them, and the sums over the batch that some are told beforehand."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ullme.gradcache.chunks import Chunk, Forward, exists, seeded
from ullme.gradcache.results import finite_rows
from ullme.types import ObjectiveInputs


class Weighted(Protocol):
    """A weighted term of the loss."""

    @property
    def weight(self) -> float:
        """The factor of its mean in the total."""

    @property
    def couples_batch(self) -> bool:
        """Whether it must see the embeddings of the global batch."""

    def __call__(self, inputs: ObjectiveInputs) -> Tensor:
        """One loss per query, (B,)."""


class Term(Weighted, Protocol):
    """A weighted term into which sums over the batch may enter."""

    @property
    def measures(self) -> Collection[str]:
        """What must be known of the batch for these sums; empty for most terms."""

    def measured_BS(self, inputs: ObjectiveInputs) -> Tensor:  # noqa: N802 - the suffix is the shape
        """What each query adds to these sums, (B, S)."""


@dataclass(frozen=True)
class _Told:
    """A term that has been told its sums over the batch."""

    term: Term
    totals_S: Tensor

    @property
    def weight(self) -> float:
        return self.term.weight

    @property
    def couples_batch(self) -> bool:
        return self.term.couples_batch

    def __call__(self, inputs: ObjectiveInputs) -> Tensor:
        return self.term(replace(inputs, totals_S=self.totals_S))


@torch.no_grad()
def told_sums(
    terms: Mapping[str, Term],
    chunks: Sequence[Chunk],
    measure: Forward | None,
    total: Callable[[Tensor, torch.device], Tensor],
) -> tuple[dict[str, Weighted], list[Tensor]]:
    """The terms, those that sum something over the batch knowing their sums; and ``finite_rows`` of each chunk."""
    if measure is None:
        return dict(terms), []
    summing = {name: term for name, term in terms.items() if term.measures}
    sums: dict[str, list[Tensor]] = {name: [] for name in summing}
    finite: list[Tensor] = []
    for chunk in chunks:
        inputs = seeded(measure, chunk)
        finite.append(finite_rows(inputs, chunk))
        for name, term in summing.items():
            exists_B = exists(chunk.batch) & (not chunk.idle)
            sums[name].append(torch.where(exists_B[:, None], term.measured_BS(inputs).double(), 0.0).sum(0))
    totals = {name: torch.stack(found).sum(0) for name, found in sums.items()}
    told: dict[str, Weighted] = {
        n: _Told(t, total(totals[n], totals[n].device)) if n in totals else t for n, t in terms.items()
    }
    return told, finite
