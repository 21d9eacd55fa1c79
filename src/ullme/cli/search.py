"""``ullme search``: what answers a query, in a corpus of embeddings or in a file of texts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ullme.cli import model_options as options


def search(
    where: Annotated[str, typer.Argument(metavar="OUT|MODEL", help="A folder of ullme encode; or a model.")],
    texts_or_query: Annotated[str, typer.Argument(metavar="[FILE]", help="After a model: .txt, .jsonl, .parquet.")],
    query: Annotated[str | None, typer.Argument(metavar="QUERY", help="What to look for.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", "--top", min=1, help="Passages to show.")] = 5,
    corpus: Annotated[
        Path | None, typer.Option(metavar="SOURCE", help="The texts, where the corpus was encoded without them.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="With a corpus: its model, where it has moved.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text before the query; default the model's own for queries, if any.")
    ] = None,
    attention: options.Attention = None,
    pooling: options.Pooling = None,
    dtype: options.Dtype = None,
    max_length: options.MaxLength = None,
    device: options.Device = None,
) -> None:
    """Show what is nearest to a query: ullme search OUT QUERY, or ullme search MODEL FILE QUERY."""
    sought = texts_or_query if query is None else query
    if not sought.strip():
        raise ValueError(f"query: {sought!r} is empty; say what to look for")
    settings = {"attention": attention, "pooling": pooling, "dtype": dtype, "max_length": max_length}
    given = {name: value for name, value in settings.items() if value is not None}
    if query is None and os.path.isfile(sought):  # pathlib's own raises where a query is longer than a file's name
        raise ValueError(f"query: is missing after {sought!r}; write ullme search {where} {sought} QUERY")
    if query is None:
        _search_corpus(where, sought, corpus, model, given, prompt, top_k, device)
        return
    if model is not None or corpus is not None:
        raise ValueError("model, corpus: go with a folder of ullme encode; leave them out, or write OUT QUERY")
    _search_file(where, Path(texts_or_query), sought, given, prompt, top_k, device)


def _search_file(
    model: str, path: Path, query: str, settings: dict[str, Any], prompt: str | None, top_k: int, device: str | None
) -> None:
    """Embed the passages of a file, and show those nearest to the query."""
    from ullme.apps.search import read_passages, show_search
    from ullme.cli.console import stdout

    found = read_passages(path)
    embedder = options.embedder(model, device, options.stated(**settings))
    show_search(embedder, found, query, top_k, stdout(), prompt=prompt)


def _search_corpus(
    folder: str,
    query: str,
    source: Path | None,
    model: str | None,
    settings: dict[str, Any],
    prompt: str | None,
    top_k: int,
    device: str | None,
) -> None:
    """Show what a corpus holds nearest to the query, embedded by the corpus's own model."""
    from ullme.apps.corpus_search import hits_of, require_model, show_hits
    from ullme.cli.console import stdout
    from ullme.encode import EmbeddedCorpus

    corpus = EmbeddedCorpus(folder)
    texts = corpus.source(source)
    known = corpus.job.model
    embedder = options.embedder(model or known["name"], device, options.stated(**{**known["settings"], **settings}))
    from ullme.eval.identity import fingerprint

    require_model(corpus, fingerprint(embedder))
    show_hits(query, hits_of(embedder, corpus, query, top_k, prompt=prompt, texts=texts), stdout())
