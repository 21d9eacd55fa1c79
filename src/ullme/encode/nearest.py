"""The rows of a corpus nearest to a query: exact, in blocks, with faiss's kernels where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec

import numpy as np

from ullme.data.wording import hint
from ullme.encode.corpus import EmbeddedCorpus
from ullme.encode.precision import BITS, unsigned

#: Bits rank coarsely: so many candidates per row asked for are scored again with the query's own numbers.
RESCORED = 8

#: The k best rows of a block: queries (B, D) and rows (N, D) to scores (B, k) and positions (B, k), best first.
Best = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def nearest(
    corpus: EmbeddedCorpus, query_BD: np.ndarray, top_k: int = 10, backend: str | None = None
) -> list[list[tuple[int, float]]]:
    """Per query, the rows with the greatest cosine similarity and that similarity, best first.

    Floats and bytes are compared as numbers, all rows of them. Bits are first ranked by Hamming distance, and the best
    ``RESCORED`` times ``top_k`` then by the query's numbers against -1 and 1 (Yamada et al. 2021, section 3). Memory
    does not grow with the corpus.

    Args:
        corpus: what is searched.
        query_BD: embeddings of the queries, floats, of the corpus's dimensions.
        top_k: rows per query.
        backend: ``faiss`` or ``numpy``; None takes faiss where it is installed. They find the same.

    Raises:
        ValueError: queries of other dimensions, or an unknown backend.
    """
    query_BD = _unit(np.asarray(query_BD, dtype=np.float32))
    if query_BD.shape[1] != corpus.job.dimension:
        raise ValueError(
            f"query: {query_BD.shape[1]} dimensions, the corpus has {corpus.job.dimension}; truncate it to these"
        )
    if top_k < 1:
        raise ValueError(f"top_k: {top_k} is less than 1; ask for at least one row")
    backend = backend or ("faiss" if find_spec("faiss") else "numpy")
    if backend not in _BACKENDS:
        raise ValueError(
            f"backend: {backend!r} is unknown; choose from {', '.join(_BACKENDS)}{hint(backend, _BACKENDS)}"
        )
    by_number, by_bits = _BACKENDS[backend]
    if corpus.job.options.precision not in BITS:
        blocks = ((start, _unit(corpus.restored(stored))) for start, stored in corpus.stored_blocks())
        score_BK, row_BK = _merged(blocks, query_BD, top_k, by_number)
    else:
        packed = ((start, unsigned(stored)) for start, stored in corpus.stored_blocks())
        _, candidate_BK = _merged(packed, np.packbits(query_BD > 0, axis=1), top_k * RESCORED, by_bits)
        score_BK, row_BK = _rescored(corpus, query_BD, candidate_BK, top_k)
    return [
        [(int(row), float(score)) for row, score in zip(rows, scores, strict=True)]
        for rows, scores in zip(row_BK, score_BK, strict=True)
    ]


def _merged(
    blocks: Iterable[tuple[int, np.ndarray]], query_BW: np.ndarray, top_k: int, best: Best
) -> tuple[np.ndarray, np.ndarray]:
    """The best rows of all blocks: scores and rows (B, k); of equal scores the earlier row."""
    score_BK = np.zeros((len(query_BW), 0), dtype=np.float32)
    row_BK = np.zeros((len(query_BW), 0), dtype=np.int64)
    for start, block in blocks:
        more_BK, at_BK = best(query_BW, block, min(top_k, len(block)))
        score_BK = np.concatenate([score_BK, more_BK], axis=1)
        row_BK = np.concatenate([row_BK, at_BK + start], axis=1)
        keep_BK = np.lexsort((row_BK, -score_BK))[:, :top_k]
        score_BK, row_BK = np.take_along_axis(score_BK, keep_BK, 1), np.take_along_axis(row_BK, keep_BK, 1)
    return score_BK, row_BK


def _rescored(
    corpus: EmbeddedCorpus, query_BD: np.ndarray, candidate_BK: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The best candidates of each query by cosine with its numbers."""
    scores, rows = [], []
    for query_D, candidate_K in zip(query_BD, candidate_BK, strict=True):
        ordered_K = np.sort(candidate_K)
        score_K = _unit(corpus.restored(corpus.stored(ordered_K.tolist()))) @ query_D
        keep_K = np.argsort(-score_K, kind="stable")[:top_k]
        scores.append(score_K[keep_K])
        rows.append(ordered_K[keep_K])
    return np.stack(scores), np.stack(rows)


def _unit(vectors_ND: np.ndarray) -> np.ndarray:
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)


def _numpy_numbers(query_BD: np.ndarray, block_ND: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    return _largest(query_BD @ block_ND.T, top_k)


def _numpy_bits(query_BW: np.ndarray, block_NW: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.int32)
    distance_BN = np.stack([ones[block_NW ^ query_W].sum(1) for query_W in query_BW])
    return _largest(-distance_BN.astype(np.float32), top_k)


def _largest(score_BN: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    at_BK = np.argsort(-score_BN, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(score_BN, at_BK, 1), at_BK


def _faiss_numbers(query_BD: np.ndarray, block_ND: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    return faiss.knn(query_BD, block_ND, top_k, metric=faiss.METRIC_INNER_PRODUCT)


def _faiss_bits(query_BW: np.ndarray, block_NW: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    distance_BK, at_BK = faiss.knn_hamming(query_BW, np.ascontiguousarray(block_NW), top_k)
    return -distance_BK.astype(np.float32), at_BK


_BACKENDS: dict[str, tuple[Best, Best]] = {
    "faiss": (_faiss_numbers, _faiss_bits),
    "numpy": (_numpy_numbers, _numpy_bits),
}
