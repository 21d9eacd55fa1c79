"""How well embeddings find passages: nDCG and recall of an ``encode`` callable on a retrieval task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Texts to embeddings, (N, D), as an array or a tensor.
Encode = Callable[[list[str]], Any]

_MEASURES = {"ndcg@10": "ndcg_cut_10", "recall@10": "recall_10", "recall@100": "recall_100", "mrr": "recip_rank"}
_DEPTH = 100


@dataclass(frozen=True)
class RetrievalTask:
    """Passages and queries by id, and which passages answer which query (query id -> passage id -> grade)."""

    corpus: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Mapping[str, Mapping[str, int]]

    def run(self, encode: Encode, encode_query: Encode | None = None) -> dict[str, dict[str, float]]:
        """Per query, its best passages and their cosine scores.

        Args:
            encode: embeds passages, and queries where ``encode_query`` is not given.
            encode_query: embeds queries, with their prompt.
        """
        ids = list(self.corpus)
        hits = nearest_passages(
            encode, [self.corpus[i] for i in ids], list(self.queries.values()), encode_query, _DEPTH
        )
        return {query: {ids[at]: score for at, score in found} for query, found in zip(self.queries, hits, strict=True)}

    def per_query(self, encode: Encode, encode_query: Encode | None = None) -> dict[str, dict[str, float]]:
        """``ndcg@10``, ``recall@10``, ``recall@100`` and ``mrr`` of every query, each in 0..1 (by trec_eval)."""
        import pytrec_eval

        qrels = {query: dict(passages) for query, passages in self.qrels.items()}
        judge = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.10,100", "recip_rank"})
        judged = judge.evaluate(self.run(encode, encode_query))
        return {query: {name: found[trec] for name, trec in _MEASURES.items()} for query, found in judged.items()}

    def __call__(self, encode: Encode, encode_query: Encode | None = None) -> dict[str, float]:
        """The means of ``per_query`` over the queries."""
        found = self.per_query(encode, encode_query).values()
        return {name: float(np.mean([query[name] for query in found])) for name in _MEASURES}


def nearest_passages(
    encode: Encode, passages: Sequence[str], queries: Sequence[str], encode_query: Encode | None = None, top_k: int = 10
) -> list[list[tuple[int, float]]]:
    """Per query, the positions and cosine scores of the passages nearest to it, best first."""
    import torch
    from sentence_transformers.util import semantic_search

    passage_PD = torch.as_tensor(encode(list(passages))).float()
    query_BD = torch.as_tensor((encode_query or encode)(list(queries))).float()
    hits = semantic_search(query_BD, passage_PD, top_k=top_k)
    return [[(int(hit["corpus_id"]), float(hit["score"])) for hit in found] for found in hits]
