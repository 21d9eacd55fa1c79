"""Shares of a global batch for each of several processes, uneven on purpose, and the global batch of such shares."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import pad

from tests.batches import random_batch
from ullme.types import Batch, MaskedTexts, Texts

#: Queries of each rank and passages per query of each rank (repeated for more ranks), tokens of a chunk.
CASES = {
    "uneven": ([3, 2], [4, 3], 100_000),
    "uneven in chunks, one rank idling": ([5, 1], [3, 3], 1),
    "uneven in passes": ([9, 1], [4, 2], 100_000),  # where texts are padded: little padding to a pass
    "even in chunks": ([2, 2], [3, 4], 60),
    "a rank without queries": ([2, 0], [3, 3], 60),
    "a rank without queries, one chunk": ([2, 0], [3, 3], 100_000),
}


def rank_batches(case: str, world: int, reference: bool = False) -> list[Batch]:
    """Each rank's share of the global batch; keys and texts are distinct over all ranks.

    ``reference`` adds likelihoods under an original LLM, for a model that has no adapter to switch off.
    """
    queries, passages = (values * (world // 2) for values in CASES[case][:2])
    total = random_batch(sum(queries), max(passages), seed=9, generation=True, ragged=True)
    if reference:
        total = replace(total, ref_logp_BP=10.0 * total.teacher_BP.double() - 60.0)
    starts = [sum(queries[:rank]) for rank in range(len(queries))]
    parts = [total.rows(range(start, start + n)) for start, n in zip(starts, queries, strict=True)]
    return [_narrowed(part, p) for part, p in zip(parts, passages, strict=True)]


def _narrowed(batch: Batch, passages: int) -> Batch:
    """The first passages of each query."""
    width = batch.passage_mask_BP.shape[1]
    kept = [b * width + p for b in range(len(batch)) for p in range(passages)]
    return replace(
        batch,
        passage=batch.passage.rows(kept),
        generation=batch.generation.rows(kept),
        passage_mask_BP=batch.passage_mask_BP[:, :passages],
        positive_mask_BP=batch.positive_mask_BP[:, :passages],
        passage_key_BP=batch.passage_key_BP[:, :passages],
        teacher_BP=batch.teacher_BP[:, :passages],
        ref_logp_BP=None if batch.ref_logp_BP is None else batch.ref_logp_BP[:, :passages],
    )


def joined(parts: list[Batch]) -> Batch:
    """The global batch of the ranks' shares, absent passages filling the narrower ones."""
    parts = [part for part in parts if len(part)]
    width = max(part.passage_mask_BP.shape[1] for part in parts)

    def widened(texts: Texts, part: Batch) -> Texts:
        missing = (0, width - part.passage_mask_BP.shape[1])
        shape = part.passage_mask_BP.shape
        lengths, skip = (pad(t.view(shape), missing).flatten() for t in (texts.lengths_N, texts.skip_N))
        return Texts(texts.ids_X, lengths, skip)

    def together(all_texts: list[Texts]) -> Texts:
        return Texts(*(torch.cat([getattr(t, n) for t in all_texts]) for n in ("ids_X", "lengths_N", "skip_N")))

    def stacked(name: str, value: int = 0):
        tensors = [getattr(part, name) for part in parts]
        return torch.cat([pad(t, (0, width - t.shape[1]), value=value) if t.dim() == 2 else t for t in tensors])

    masked = [part.masked for part in parts]
    return Batch(
        query=together([part.query for part in parts]),
        passage=together([widened(part.passage, part) for part in parts]),
        generation=together([widened(part.generation, part) for part in parts]),
        passage_mask_BP=stacked("passage_mask_BP"),
        positive_mask_BP=stacked("positive_mask_BP"),
        query_key_B=stacked("query_key_B"),
        passage_key_BP=stacked("passage_key_BP", -1),
        row_ids=tuple(row for part in parts for row in part.row_ids),
        masked=MaskedTexts(together([m.texts for m in masked]), torch.cat([m.target_X for m in masked])),
        teacher_BP=stacked("teacher_BP"),
        ref_logp_BP=None if parts[0].ref_logp_BP is None else stacked("ref_logp_BP"),
    )
