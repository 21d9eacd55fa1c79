"""``ullme search``: the passages of a file that answer a query."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ullme.cli import model_options as options


def search(
    model: options.Model,
    passages: Annotated[Path, typer.Argument(help="What to search: one passage per line, or .jsonl.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    top: Annotated[int, typer.Option(min=1, help="Passages to show.")] = 5,
    attention: options.Attention = None,
    pooling: options.Pooling = None,
    dtype: options.Dtype = None,
    max_length: options.MaxLength = None,
    device: options.Device = None,
) -> None:
    """Show the passages of a file nearest to a query."""
    from ullme.apps.search import read_passages, show_search
    from ullme.cli.console import stdout

    found = read_passages(passages)
    if not query.strip():
        raise ValueError(f"query: {query!r} is empty; say what to look for")
    settings = options.stated(attention=attention, pooling=pooling, dtype=dtype, max_length=max_length)
    show_search(options.embedder(model, device, settings), found, query, top, stdout())
