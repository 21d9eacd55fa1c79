"""One training step whose gradient is that of the whole global batch, in the memory of one chunk.

GradCache (Gao et al. 2021): embeddings of all chunks without gradient, the coupled loss and its gradient with respect
to the embeddings, then each chunk once more with gradient. Losses that read one query's own passages are computed in
that second pass. The step knows neither model nor objective: both are callables.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from ullme import distributed
from ullme.batching import consecutive_chunks
from ullme.types import IGNORED, Batch, MaskedTexts, ObjectiveInputs, Texts

Forward = Callable[[Batch], ObjectiveInputs]
Cache = tuple[Tensor, Tensor]  # gradient of the coupled loss at the embeddings: query_BD, passage_BPD


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

    def sums_BS(self, inputs: ObjectiveInputs) -> Tensor:  # noqa: N802 - the suffix is the shape
        """What each query adds to these sums, (B, S)."""


@dataclass(frozen=True)
class StepResult:
    """What a step measured: global means (scalars, unweighted but for ``total``) and this rank's losses per query.

    ``finite`` tells whether the total, and all from which every rank's losses were computed, is neither NaN nor
    infinite: a loss that looks away from such a number, as one without negatives does, has a NaN for its gradient.
    ``finite_B`` tells the same of this rank's queries. ``inputs`` is what evaluation computed of them.
    """

    total: Tensor
    losses: dict[str, Tensor]
    loss_B: dict[str, Tensor]
    finite: Tensor
    finite_B: Tensor
    chunks: int
    inputs: ObjectiveInputs | None = None

    def rows_not_finite(self, row_ids: Sequence[str]) -> list[str]:
        """The ids of this rank's queries that made the loss NaN or infinite.

        One broken embedding breaks every coupled loss of the batch, so rows whose own numbers are broken are named
        alone.
        """
        bad_B = ~self.finite_B
        if self.finite_B.all():
            bad_B = ~torch.stack([torch.isfinite(loss_B) for loss_B in self.loss_B.values()]).all(0)
        return [row_id for row_id, bad in zip(row_ids, bad_B.tolist(), strict=True) if bad]


@dataclass(frozen=True)
class _Chunk:
    """Whole queries that share a forward pass; an idle one keeps other ranks company, holds no query of the batch."""

    rows: slice
    batch: Batch
    seed: int
    idle: bool = False


def gradcache_step(
    batch: Batch,
    *,
    forward: Forward,
    objectives: Mapping[str, Term],
    embed: Forward | None = None,
    measure: Forward | None = None,
    chunk_tokens: int | None = None,
    backward: Callable[[Tensor], None] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
    gradient_scale: float = 1.0,
) -> StepResult:
    """Accumulate the gradient of the global batch's weighted mean loss into the model's parameters.

    Every query counts once, whatever the chunks and ranks; a row without passages is padding and does not count. Each
    chunk draws its random numbers (dropout) from a seed of its own in both passes, so that the second pass repeats the
    first; ``forward`` must therefore embed before it does anything else that draws.

    Args:
        batch: this rank's queries; none, where the global batch has fewer than there are ranks.
        forward: a chunk to its inputs, with gradient.
        objectives: the terms, by the names under which they are reported.
        embed: a chunk to its embeddings alone, called without gradient; ``forward`` when None.
        measure: a chunk to what the terms sum over the batch, called without gradient before all else; for terms that
            sum nothing it is left out.
        chunk_tokens: tokens of one chunk (a longer query stands alone); None takes all in one chunk.
        backward: accumulates a loss's gradient.
        no_sync: a context in which ranks do not exchange gradients; all chunks but the last run in it.
        gradient_scale: the number of ranks where the wrapper averages gradients over them, else 1.
    """
    chunks = _chunks(batch, chunk_tokens)
    count = distributed.global_sum(_exists(batch).sum(), batch.passage_mask_BP.device).item()
    terms, measured = _measured(objectives, chunks, measure, distributed.global_sum)
    coupled = {name: term for name, term in terms.items() if term.couples_batch}
    separate = {name: term for name, term in terms.items() if not term.couples_batch}
    # one chunk: its graph is kept, and nothing has to run twice
    kept = _seeded(forward, chunks[0]) if len(chunks) == 1 else None
    cache: Cache | None = None
    loss_B: dict[str, Tensor] = {}
    local = None
    if coupled:
        with torch.no_grad():
            first = [kept] if kept is not None else [_seeded(embed or forward, chunk) for chunk in chunks]
        local = _joined(batch, chunks, first)
        cache, loss_B = _coupled_gradient(local, coupled, count)
    parts: dict[str, list[Tensor]] = {name: [] for name in separate}
    finite: list[Tensor] = []
    for i, chunk in enumerate(chunks):
        with no_sync() if i < len(chunks) - 1 else nullcontext():
            inputs = kept if kept is not None else _seeded(forward, chunk)
            chunk_loss_B = {name: _counted(term(inputs), chunk.batch) for name, term in separate.items()}
            summands = [separate[name].weight * value_B.sum() / count for name, value_B in chunk_loss_B.items()]
            summands += [] if cache is None else [_surrogate(inputs, cache, chunk)]
            backward(torch.stack(summands).sum() * (0.0 if chunk.idle else gradient_scale))
        finite.append(_finite_B(inputs, chunk))
        for name, value_B in chunk_loss_B.items():
            parts[name].append(value_B.detach()[:0] if chunk.idle else value_B.detach())
    loss_B |= {name: torch.cat(values) for name, values in parts.items()}
    finite_B = torch.cat(finite) & torch.cat(measured or finite)
    return _result({name: loss_B[name] for name in terms}, terms, count, finite_B, len(chunks))


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
    index = _cut(batch, chunk_tokens)
    chunks = [_Chunk(slice(rows[0], rows[-1] + 1), batch.rows(rows), seed=0) for rows in index]
    terms, measured = _measured(objectives, chunks, measure, lambda sums_S, device: sums_S)
    found = [forward(chunk.batch) for chunk in chunks]
    count = float(_exists(batch).sum())
    separate = {name: term for name, term in terms.items() if not term.couples_batch}
    loss_B = {
        name: torch.cat([_counted(term(inputs), chunk.batch) for chunk, inputs in zip(chunks, found, strict=True)])
        for name, term in separate.items()
    }
    whole = _together(batch, found)
    loss_B |= {n: _counted(term(whole), batch) for n, term in terms.items() if term.couples_batch}
    losses = {name: loss_B[name].sum() / count for name in terms}
    total = torch.stack([term.weight * losses[name] for name, term in terms.items()]).sum()
    finite = [_finite_B(inputs, chunk) for chunk, inputs in zip(chunks, found, strict=True)]
    finite_B = torch.cat(finite) & torch.cat(measured or finite)
    return StepResult(total, losses, loss_B, torch.isfinite(total) & finite_B.all(), finite_B, len(chunks), whole)


@dataclass(frozen=True)
class _Measured:
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
def _measured(
    terms: Mapping[str, Term],
    chunks: Sequence[_Chunk],
    measure: Forward | None,
    total: Callable[[Tensor, torch.device], Tensor],
) -> tuple[dict[str, Weighted], list[Tensor]]:
    """The terms, those that sum something over the batch knowing their sums, and each chunk's ``_finite_B``, if any."""
    if measure is None:
        return dict(terms), []
    summing = {name: term for name, term in terms.items() if term.measures}
    sums: dict[str, list[Tensor]] = {name: [] for name in summing}
    finite: list[Tensor] = []
    for chunk in chunks:
        inputs = _seeded(measure, chunk)
        finite.append(_finite_B(inputs, chunk))
        for name, term in summing.items():
            exists_B = _exists(chunk.batch) & (not chunk.idle)
            sums[name].append(torch.where(exists_B[:, None], term.sums_BS(inputs).double(), 0.0).sum(0))
    totals = {name: torch.stack(found).sum(0) for name, found in sums.items()}
    told: dict[str, Weighted] = {
        n: _Measured(t, total(totals[n], totals[n].device)) if n in totals else t for n, t in terms.items()
    }
    return told, finite


def _cut(batch: Batch, chunk_tokens: int | None) -> list[list[int]]:
    if chunk_tokens is None or len(batch) == 0:
        return [list(range(len(batch)))] if len(batch) else []
    return consecutive_chunks(batch.tokens_B().tolist(), chunk_tokens)


def _chunks(batch: Batch, chunk_tokens: int | None) -> list[_Chunk]:
    """The batch's queries in order, in as many chunks as the rank that needs most.

    A rank that needs fewer splits the chunks with most queries further, and where single queries are left, idles.
    """
    index = _cut(batch, chunk_tokens)
    target = max(1, distributed.global_max(len(index), batch.passage_mask_BP.device))
    while len(index) < min(target, len(batch)):
        largest = max(range(len(index)), key=lambda i: len(index[i]))
        rows = index[largest]
        index[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    # ranks usually start from one seed: the rank's number keeps their dropout masks apart
    seeds = (torch.randint(2**62, (target,)) + distributed.rank()).tolist()
    chunks = [_Chunk(slice(r[0], r[-1] + 1), batch.rows(r), s) for r, s in zip(index, seeds, strict=False)]
    return chunks + [_Chunk(slice(0, 0), _idle_batch(batch), s, idle=True) for s in seeds[len(index) :]]


def _idle_batch(batch: Batch) -> Batch:
    """A query and a passage of one token each, so that a rank without queries runs the model as the others do."""
    one = Texts.from_lists([[0]])
    exists_BP = torch.ones(1, 1, dtype=torch.bool)
    keys_BP = torch.zeros(1, 1, dtype=torch.long)
    two = Texts.from_lists([[0, 0]], skip=[1])
    idle = Batch(
        query=one,
        passage=one,
        generation=None if batch.generation is None else two,
        passage_mask_BP=exists_BP,
        positive_mask_BP=exists_BP,
        query_key_B=keys_BP[0],
        passage_key_BP=keys_BP,
        row_ids=("",),
        mismatched=None if batch.mismatched is None else two,
        masked=None if batch.masked is None else MaskedTexts(two, torch.tensor([IGNORED, 0])),
        teacher_BP=None if batch.teacher_BP is None else torch.zeros(1, 1),
        ref_logp_BP=None if batch.ref_logp_BP is None else torch.zeros(1, 1),
    )
    return idle.to(batch.passage_mask_BP.device)


def _seeded(function: Forward, chunk: _Chunk) -> ObjectiveInputs:
    with chunk_randomness(chunk.seed):
        return function(chunk.batch)


@contextmanager
def chunk_randomness(seed: int) -> Iterator[None]:
    """Inside, random numbers of the CPU and the GPU follow from ``seed``; outside, nothing has happened."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _joined(batch: Batch, chunks: Sequence[_Chunk], found: Sequence[ObjectiveInputs]) -> ObjectiveInputs:
    """The batch's embeddings from those of its chunks, without gradient."""
    pairs = [_embeddings(inputs) for chunk, inputs in zip(chunks, found, strict=True) if not chunk.idle]
    if not pairs:  # this rank has no query, yet takes part with as wide an embedding as the others
        query_BD, passages = _embeddings(found[0])[0][:0], batch.passage_mask_BP.shape[1]
        pairs = [(query_BD, query_BD.new_zeros(0, passages, query_BD.shape[-1]))]
    return ObjectiveInputs.of(
        batch,
        query_BD=torch.cat([query_BD.detach() for query_BD, _ in pairs]),
        passage_BPD=torch.cat([passage_BPD.detach() for _, passage_BPD in pairs]),
    )


def _embeddings(inputs: ObjectiveInputs) -> tuple[Tensor, Tensor]:
    assert inputs.query_BD is not None and inputs.passage_BPD is not None, "the forward pass did not embed"
    return inputs.query_BD, inputs.passage_BPD


def _coupled_gradient(
    local: ObjectiveInputs, terms: Mapping[str, Weighted], count: float
) -> tuple[Cache, dict[str, Tensor]]:
    """Gradient of the coupled terms' global mean with respect to this rank's embeddings, and this rank's losses.

    Every rank evaluates the global loss and takes its own rows of the gradient: exact, without autograd across ranks.
    """
    whole, own = distributed.gather_inputs(local)
    leaves = [rows.detach().requires_grad_() for rows in _embeddings(whole)]
    inputs = replace(whole, query_BD=leaves[0], passage_BPD=leaves[1])
    exists_B = inputs.passage_mask_BP.any(1)
    with torch.enable_grad():
        loss_B = {name: torch.where(exists_B, term(inputs), 0.0) for name, term in terms.items()}
        total = torch.stack([terms[name].weight * value_B.sum() for name, value_B in loss_B.items()]).sum() / count
    query_BD, passage_BPD = torch.autograd.grad(total, leaves, materialize_grads=True)
    cache = (query_BD[own], passage_BPD[own, : local.passage_mask_BP.shape[1]])
    return cache, {name: value_B.detach()[own] for name, value_B in loss_B.items()}


def _surrogate(inputs: ObjectiveInputs, cache: Cache, chunk: _Chunk) -> Tensor:
    """<embedding, cached gradient>: its gradient is the coupled terms' gradient through this chunk."""
    query_BD, passage_BPD = _embeddings(inputs)
    if chunk.idle:  # touches what the other ranks' chunks touch
        return query_BD.sum() + passage_BPD.sum()
    return (query_BD * cache[0][chunk.rows]).sum() + (passage_BPD * cache[1][chunk.rows]).sum()


def _exists(batch: Batch) -> Tensor:
    return batch.passage_mask_BP.any(1)


def _counted(loss_B: Tensor, batch: Batch) -> Tensor:
    return torch.where(_exists(batch), loss_B, 0.0)


def _finite_B(inputs: ObjectiveInputs, chunk: _Chunk) -> Tensor:
    """Whether all that was computed of each query of a chunk is finite; none of an idle one."""
    finite_B = torch.ones_like(_exists(chunk.batch))
    for value in _computed(inputs).values():
        if value.is_floating_point():
            finite_B &= torch.isfinite(value.detach()).flatten(1).all(1) if value.dim() > 1 else torch.isfinite(value)
    return (finite_B | ~_exists(chunk.batch))[: 0 if chunk.idle else None]


def _together(batch: Batch, found: Sequence[ObjectiveInputs]) -> ObjectiveInputs:
    """All that was computed of a batch's chunks."""
    parts = [_computed(inputs) for inputs in found]
    return ObjectiveInputs.of(batch, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _computed(inputs: ObjectiveInputs) -> dict[str, Tensor]:
    """What inputs hold of each query, beyond what every batch states."""
    optional = [f.name for f in fields(inputs) if f.default is None and f.name != "totals_S"]
    values = {name: getattr(inputs, name) for name in optional}
    return {name: value for name, value in values.items() if value is not None}


def _result(
    loss_B: dict[str, Tensor], terms: Mapping[str, Weighted], count: float, finite_B: Tensor, chunks: int
) -> StepResult:
    names = list(loss_B)
    local_N = torch.stack([*(loss_B[name].double().sum() for name in names), (~finite_B).double().sum()])
    *mean_N, broken = distributed.global_sum(local_N, local_N.device) / count
    losses = dict(zip(names, mean_N, strict=True))
    total = torch.stack([terms[name].weight * losses[name] for name in names]).sum()
    return StepResult(total, losses, loss_B, torch.isfinite(total) & (broken == 0), finite_B, chunks)
