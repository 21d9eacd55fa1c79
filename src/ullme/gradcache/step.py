"""One training step whose gradient is that of the whole global batch, in the memory of one chunk.

GradCache (Gao et al. 2021): embeddings of all chunks without gradient, the coupled loss and its gradient with respect
to the embeddings, then each chunk once more with gradient. Losses that read one query's own passages are computed in
that second pass. The chunk that goes back first is not run twice: its graph alone is kept. The step knows neither model
nor objective: both are callables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from ullme import distributed
from ullme.gradcache.chunks import Chunk, Forward, chunks_of, counted, exists, seeded
from ullme.gradcache.results import StepResult, finite_rows
from ullme.gradcache.terms import Term, Weighted, told_sums
from ullme.types import Batch, ObjectiveInputs

Cache = tuple[Tensor, Tensor]  # gradient of the coupled loss at the embeddings: query_BD, passage_BPD


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
    chunks = chunks_of(batch, chunk_tokens)
    count = distributed.global_sum(exists(batch).sum(), batch.passage_mask_BP.device).item()
    terms, measured = told_sums(objectives, chunks, measure, distributed.global_sum)
    coupled = {name: term for name, term in terms.items() if term.couples_batch}
    separate = {name: term for name, term in terms.items() if not term.couples_batch}
    alone = len(chunks) == 1
    cache: Cache | None = None
    loss_B: dict[str, Tensor] = {}
    kept: ObjectiveInputs | None = None
    if coupled:
        with torch.no_grad():
            others = [seeded(embed or forward, chunk) for chunk in chunks[1:]]
        with nullcontext() if alone else no_sync():  # it goes back first: its graph is kept, and it runs only once
            kept = seeded(forward, chunks[0])
        cache, loss_B = _coupled_gradient(_joined(batch, chunks, [kept, *others]), coupled, count)
    parts: dict[str, list[Tensor]] = {name: [] for name in separate}
    finite: list[Tensor] = []
    for i, chunk in enumerate(chunks):
        with no_sync() if i < len(chunks) - 1 else nullcontext():
            inputs = kept if kept is not None else seeded(forward, chunk)
            kept = None  # its graph ends with its backward
            chunk_loss_B = {name: counted(term(inputs), chunk.batch) for name, term in separate.items()}
            summands = [separate[name].weight * value_B.sum() / count for name, value_B in chunk_loss_B.items()]
            summands += [] if cache is None else [_surrogate(inputs, cache, chunk)]
            backward(torch.stack(summands).sum() * (0.0 if chunk.idle else gradient_scale))
        finite.append(finite_rows(inputs, chunk))
        for name, value_B in chunk_loss_B.items():
            parts[name].append(value_B.detach()[:0] if chunk.idle else value_B.detach())
    loss_B |= {name: torch.cat(values) for name, values in parts.items()}
    finite_B = torch.cat(finite) & torch.cat(measured or finite)
    return _result({name: loss_B[name] for name in terms}, terms, count, finite_B, len(chunks))


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


def _surrogate(inputs: ObjectiveInputs, cache: Cache, chunk: Chunk) -> Tensor:
    """<embedding, cached gradient>: its gradient is the coupled terms' gradient through this chunk."""
    query_BD, passage_BPD = _embeddings(inputs)
    if chunk.idle:  # touches what the other ranks' chunks touch
        return query_BD.sum() + passage_BPD.sum()
    return (query_BD * cache[0][chunk.rows]).sum() + (passage_BPD * cache[1][chunk.rows]).sum()


def _joined(batch: Batch, chunks: Sequence[Chunk], found: Sequence[ObjectiveInputs]) -> ObjectiveInputs:
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


def _result(
    loss_B: dict[str, Tensor], terms: Mapping[str, Weighted], count: float, finite_B: Tensor, chunks: int
) -> StepResult:
    names = list(loss_B)
    local_N = torch.stack([*(loss_B[name].double().sum() for name in names), (~finite_B).double().sum()])
    *mean_N, broken = distributed.global_sum(local_N, local_N.device) / count
    losses = dict(zip(names, mean_N, strict=True))
    total = torch.stack([terms[name].weight * losses[name] for name in names]).sum()
    return StepResult(total, losses, loss_B, torch.isfinite(total) & (broken == 0), finite_B, chunks)
