"""Hard negatives found by an encoder, through the miner of sentence-transformers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch import Tensor

from ullme.types import PairExample

#: Texts to embeddings, (N, D), as an array or a tensor.
Encode = Callable[[list[str]], Any]
#: What the miner gives.
_MINED = ("query", "positive", "negative", "scores")
#: Scores of queries and passages that are held at once.
_CELLS_AT_ONCE = 2**26


def mine_negatives(
    pairs: Iterable[PairExample],
    encode: Encode,
    encode_query: Encode | None = None,
    *,
    corpus: Sequence[str] | None = None,
    count: int = 4,
    range_min: int = 0,
    range_max: int | None = None,
    relative_margin: float | None = 0.05,
    absolute_margin: float | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    sampled: bool = False,
    seed: int = 0,
    cross_encoder: Any = None,
    keep_scores: bool = False,
) -> list[PairExample]:
    """The pairs with mined hard negatives in place of their own; where none qualifies there are none, and no scores.

    Candidates are the passages nearest to the query by cosine, without every positive of any pair of that query, and
    each text once. Too near a passage is likely a positive that nobody marked: the margins leave those out
    (NV-Retriever, Moreira et al. 2024: TopK-PercPos, whose 5% is the default).

    Args:
        pairs: queries with their positives.
        encode: embeds passages, and queries where ``encode_query`` is not given.
        encode_query: embeds queries, with their prompt.
        corpus: passages to mine from beside the positives of all pairs.
        count: negatives of a pair at most.
        range_min: nearest candidates to pass over.
        range_max: candidates to look at; default by the library from ``count`` and the filters.
        relative_margin: a negative scores at most the lowest positive minus this share of it; None switches it off.
        absolute_margin: a negative scores at most the lowest positive minus this.
        max_score: highest cosine of a negative.
        min_score: lowest cosine of a negative.
        sampled: draw from the candidates in range at random instead of taking the nearest.
        seed: of that draw.
        cross_encoder: a ``CrossEncoder`` of sentence-transformers, whose scores of the candidates in range take the
            place of the cosines in margins, bounds and order.
        keep_scores: give every row that has negatives the scores of its passages, for distillation.

    Raises:
        ValueError: no pairs, a range in which ``count`` candidates cannot lie, or a cross-encoder without any filter.
    """
    from sentence_transformers.util import mine_hard_negatives

    rows = list(pairs)
    if not rows:
        raise ValueError("pairs: none to mine for; give at least one")
    if count < 1:
        raise ValueError(f"count: {count} is less than 1; mine at least one negative")
    if cross_encoder is not None and all(f is None for f in (relative_margin, absolute_margin, max_score, min_score)):
        raise ValueError("cross_encoder: its scores are for margins and bounds, and none is given; give one")
    anchored = [(row.query, positive) for row in rows for positive in row.positives]
    distinct = len({*(corpus or ()), *(positive for _, positive in anchored)})
    with _seeded(seed):
        mined = mine_hard_negatives(
            datasets.Dataset.from_dict({"query": [q for q, _ in anchored], "positive": [p for _, p in anchored]}),
            cast(Any, _Encoder(encode, encode_query or encode)),
            corpus=list(corpus) if corpus is not None else None,
            cross_encoder=cross_encoder,
            range_min=range_min,
            range_max=range_max,
            relative_margin=relative_margin,
            absolute_margin=absolute_margin,
            max_score=max_score,
            min_score=min_score,
            num_negatives=count,
            sampling_strategy="random" if sampled else "top",
            output_scores=True,
            faiss_batch_size=max(1, _CELLS_AT_ONCE // distinct),
            verbose=False,
        )
    return _with_negatives(rows, mined, count, keep_scores)


def _with_negatives(
    rows: Sequence[PairExample], mined: datasets.Dataset, count: int, keep_scores: bool
) -> list[PairExample]:
    """The rows with what was mined for their queries."""
    found: dict[str, dict[str, float]] = {}
    right: dict[tuple[str, str], float] = {}
    for query, positive, negative, scores in zip(*(mined[name] for name in _MINED), strict=True):
        right[query, positive] = scores[0]
        if negative != query:
            found.setdefault(query, {})[negative] = scores[1]
    given = []
    for row in rows:
        negatives = dict(list(found.get(row.query, {}).items())[:count])
        known = keep_scores and bool(negatives)
        scores = (*(right[row.query, text] for text in row.positives), *negatives.values()) if known else None
        given.append(replace(row, negatives=tuple(negatives), scores=scores))
    return given


class _Encoder:
    """Two callables as the part of a SentenceTransformer that the miner uses."""

    device = torch.device("cpu")

    def __init__(self, encode: Encode, encode_query: Encode) -> None:
        self._encode, self._encode_query = encode, encode_query

    def encode_document(self, texts: list[str], **_: Any) -> np.ndarray:
        return _unit_rows(self._encode(list(texts)))

    def encode_query(self, texts: list[str], **_: Any) -> np.ndarray:
        return _unit_rows(self._encode_query(list(texts)))

    def similarity(self, a_ND: Any, b_ND: Any) -> Tensor:
        return torch.as_tensor(a_ND) @ torch.as_tensor(b_ND).T

    def similarity_pairwise(self, a_ND: Any, b_ND: Any) -> Tensor:
        return (torch.as_tensor(a_ND) * torch.as_tensor(b_ND)).sum(-1)


def _unit_rows(embedding_ND: Any) -> np.ndarray:
    return torch.nn.functional.normalize(torch.as_tensor(embedding_ND).float().cpu(), dim=-1).numpy()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The miner draws from Python's global generator: seed it, then leave it as it was."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
