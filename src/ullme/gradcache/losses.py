"""The losses of a batch without gradient: what evaluation reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ullme.gradcache.chunks import Chunk, Forward, counted, cut, exists
from ullme.gradcache.results import StepResult, computed, finite_rows
from ullme.gradcache.terms import Term, told_sums
from ullme.types import Batch, ObjectiveInputs


@torch.no_grad()
def batch_losses(
    batch: Batch,
    *,
    forward: Forward,
    objectives: Mapping[str, Term],
    measure: Forward | None = None,
    chunk_tokens: int | None = None,
) -> StepResult:
    """The losses of this rank's batch alone, without gradient: what evaluation reports. Nothing crosses ranks."""
    index = cut(batch, chunk_tokens)
    chunks = [Chunk(slice(rows[0], rows[-1] + 1), batch.rows(rows), seed=0) for rows in index]
    terms, measured = told_sums(objectives, chunks, measure, lambda sums_S, device: sums_S)
    found = [forward(chunk.batch) for chunk in chunks]
    count = float(exists(batch).sum())
    separate = {name: term for name, term in terms.items() if not term.couples_batch}
    loss_B = {
        name: torch.cat([counted(term(inputs), chunk.batch) for chunk, inputs in zip(chunks, found, strict=True)])
        for name, term in separate.items()
    }
    whole = _together(batch, found)
    loss_B |= {n: counted(term(whole), batch) for n, term in terms.items() if term.couples_batch}
    losses = {name: loss_B[name].sum() / count for name in terms}
    total = torch.stack([term.weight * losses[name] for name, term in terms.items()]).sum()
    finite = [finite_rows(inputs, chunk) for chunk, inputs in zip(chunks, found, strict=True)]
    finite_B = torch.cat(finite) & torch.cat(measured or finite)
    return StepResult(total, losses, loss_B, torch.isfinite(total) & finite_B.all(), finite_B, len(chunks), whole)


def _together(batch: Batch, found: Sequence[ObjectiveInputs]) -> ObjectiveInputs:
    """All that was computed of a batch's chunks."""
    parts = [computed(inputs) for inputs in found]
    return ObjectiveInputs.of(batch, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
