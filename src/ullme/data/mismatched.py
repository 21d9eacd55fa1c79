"""Queries before other queries' passages: what KTO estimates the divergence from its reference on."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ullme import distributed
from ullme.types import Batch, Texts


def with_mismatched(batch: Batch, alone: bool = False) -> Batch:
    """The batch with ``mismatched``: each query's generation text around the passages of the next query.

    The global batch's queries stand in a ring in the order of their keys, so that neither their order in the batch nor
    the ranks that hold them decide who is next; every passage is read after exactly one other query. Where the next
    query is equal, as in a batch of one, nothing is mismatched and the texts are absent (length 0).

    Args:
        batch: this rank's queries, with generation texts.
        alone: this rank's queries are all there are.
    """
    texts, query_key_B, passage_key_BP, own = _ring_members(batch, alone)
    rows, width = passage_key_BP.shape
    ids = [text.tolist() for text in texts.ids_X.split(texts.lengths_N.tolist())]
    skip = texts.skip_N.tolist()
    places = [range(b * width, (b + 1) * width) for b in range(rows)]
    head = [next((ids[p][: skip[p]] for p in place if ids[p]), None) for place in places]
    keys = [(q, sorted(p)) for q, p in zip(query_key_B.tolist(), passage_key_BP.tolist(), strict=True)]
    ring = sorted((b for b in range(rows) if head[b] is not None), key=lambda b: keys[b])
    following = {b: n for b, n in zip(ring, ring[1:] + ring[:1], strict=True) if keys[b][0] != keys[n][0]}
    made: list[list[int]] = []
    for b in range(*own.indices(rows)):
        tails = [ids[p][skip[p] :] for p in places[following[b]]] if b in following else [[]] * width
        made += [[*(head[b] or []), *tail] if tail else [] for tail in tails]
    heads = [len(head[b] or []) for b in range(*own.indices(rows)) for _ in range(width)]
    skipped = [n if text else 0 for n, text in zip(heads, made, strict=True)]
    return replace(batch, mismatched=Texts.from_lists(made, skipped).to(batch.query_key_B.device))


def _ring_members(batch: Batch, alone: bool) -> tuple[Texts, Tensor, Tensor, slice]:
    assert batch.generation is not None, "mismatched texts are made of generation texts"
    members = (batch.generation, batch.query_key_B, batch.passage_key_BP)
    return (*members, slice(0, len(batch))) if alone else distributed.gather_texts(*members)
