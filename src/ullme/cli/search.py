"""``ullme search``: the texts of a file that answer a query."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ullme.cli import model_options as options


def search(
    model: options.Model,
    texts: Annotated[Path, typer.Argument(help="Texts to search: .txt, .jsonl or .parquet.")],
    query: Annotated[list[str], typer.Argument(help="What to look for; may be several.")],
    top: Annotated[int, typer.Option(min=1, help="Hits per query.")] = 5,
    device: options.Device = None,
) -> None:
    """Show the texts of a file nearest to each query."""
    from ullme.apps.search import search as run
    from ullme.eval import load_model

    run(options.place(load_model(model), device), texts, query, top)
