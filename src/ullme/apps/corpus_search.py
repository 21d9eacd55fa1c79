"""Search a corpus of embeddings on disk by meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ullme.encode import EmbeddedCorpus, TextSource, nearest


@dataclass(frozen=True)
class Hit:
    """A row of a corpus that answers a query: its cosine similarity, its id and its text, if that is known."""

    score: float
    id: str
    text: str | None


def hits_of(
    model: Any,
    corpus: EmbeddedCorpus,
    query: str,
    top_k: int = 5,
    prompt: str | None = None,
    texts: TextSource | None = None,
) -> list[Hit]:
    """The rows of a corpus nearest to a query, best first.

    Args:
        model: the model that the corpus was encoded with; anything with ``encode_query``.
        corpus: what is searched.
        query: what to look for.
        top_k: how many to return.
        prompt: text before the query; None takes the model's own for queries, if any.
        texts: where the texts are, if the corpus was encoded without them.

    Raises:
        ValueError: an empty query, or texts that are not the corpus's.
    """
    if not query.strip():
        raise ValueError("query: empty; say what to look for")
    how = {} if prompt is None else {"prompt": prompt}
    query_BD = np.asarray(model.encode_query([query], **how), dtype=np.float32)
    found = nearest(corpus, query_BD[:, : corpus.job.options.truncate_dim], top_k)[0]
    entries = corpus.entries([row for row, _ in found], texts)
    return [Hit(score, entry.id, entry.text) for (_, score), entry in zip(found, entries, strict=True)]


def require_model(corpus: EmbeddedCorpus, fingerprint: str | None) -> None:
    """Pass if a model is the one that a corpus was encoded with: embeddings of two models do not compare.

    Raises:
        ValueError: it is another one.
    """
    known = corpus.job.model
    if fingerprint != known["fingerprint"]:
        raise ValueError(
            f"model: {str(corpus.path)!r} was encoded with {known['name']!r} as it then was (fingerprint "
            f"{str(known['fingerprint'])[:12]}), this one is {str(fingerprint)[:12]}; use that model with the same "
            "settings, or encode again into a new folder"
        )


def show_hits(query: str, hits: Sequence[Hit], console: Console | None = None) -> None:
    """Print hits as a table; brackets in a text are text, not markup."""
    table = Table(title=Text(query), title_justify="left")
    table.add_column("score", justify="right")
    table.add_column("id", overflow="fold")
    table.add_column("text", overflow="fold")
    for hit in hits:
        table.add_row(f"{hit.score:.3f}", Text(hit.id), Text(hit.text if hit.text is not None else "(not kept)"))
    if any(hit.text is None for hit in hits):
        table.caption = "texts were not kept; name the source with --corpus to see them"
    (console or Console()).print(table)
