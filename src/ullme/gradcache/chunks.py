"""Chunks: whole queries that share a forward pass, cut by tokens, as many on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ullme import distributed
from ullme.batching import consecutive_chunks
from ullme.types import IGNORED, Batch, MaskedTexts, ObjectiveInputs, Texts

Forward = Callable[[Batch], ObjectiveInputs]


@dataclass(frozen=True)
class Chunk:
    """Whole queries that share a forward pass; an idle one keeps other ranks company, holds no query of the batch."""

    rows: slice
    batch: Batch
    seed: int
    idle: bool = False


def cut(batch: Batch, chunk_tokens: int | None) -> list[list[int]]:
    """Positions of the queries of each chunk; a query of more tokens than a chunk stands alone."""
    if chunk_tokens is None or len(batch) == 0:
        return [list(range(len(batch)))] if len(batch) else []
    return consecutive_chunks(batch.tokens_B().tolist(), chunk_tokens)


def chunks_of(batch: Batch, chunk_tokens: int | None) -> list[Chunk]:
    """The batch's queries in order, in as many chunks as the rank that needs most.

    A rank that needs fewer splits the chunks with most queries further, and where single queries are left, idles.
    """
    index = cut(batch, chunk_tokens)
    target = max(1, distributed.global_max(len(index), batch.passage_mask_BP.device))
    while len(index) < min(target, len(batch)):
        largest = max(range(len(index)), key=lambda i: len(index[i]))
        rows = index[largest]
        index[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    # ranks usually start from one seed: the rank's number keeps their dropout masks apart
    seeds = (torch.randint(2**62, (target,)) + distributed.rank()).tolist()
    chunks = [Chunk(slice(r[0], r[-1] + 1), batch.rows(r), s) for r, s in zip(index, seeds, strict=False)]
    return chunks + [Chunk(slice(0, 0), _idle_batch(batch), s, idle=True) for s in seeds[len(index) :]]


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


def seeded(function: Forward, chunk: Chunk) -> ObjectiveInputs:
    """What a pass computes of a chunk, its random numbers those of every pass over this chunk."""
    with chunk_randomness(chunk.seed):
        return function(chunk.batch)


@contextmanager
def chunk_randomness(seed: int) -> Iterator[None]:
    """Inside, random numbers of the CPU and the GPU follow from ``seed``; outside, nothing has happened."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def exists(batch: Batch) -> Tensor:
    """Which rows have passages, (B,); the others are padding."""
    return batch.passage_mask_BP.any(1)


def counted(loss_B: Tensor, batch: Batch) -> Tensor:
    """Losses in which padding is zero, (B,)."""
    return torch.where(exists(batch), loss_B, 0.0)
