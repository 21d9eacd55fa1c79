"""``ullme quickstart``: the whole path on real input."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    model: Annotated[str, typer.Option(help="A packaged model, hub name or model folder.")] = "smollm2-135m-instruct",
    output: Annotated[Path, typer.Option(help="Folder for pairs, model, plot and scores.")] = Path("runs/quickstart"),
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 30,
    batch_size: Annotated[int, typer.Option(min=2, help="Queries per step.")] = 32,
    test_queries: Annotated[int, typer.Option(min=1, help="Queries to score with.")] = 200,
    test_passages: Annotated[int, typer.Option(min=2, help="Passages among which they look.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Seed of data and training.")] = 0,
) -> None:
    """Fine-tune a small LLM on this machine's own Python documentation, score it before and after, search with it."""
    from ullme.apps.quickstart import quickstart as run
    from ullme.cli.console import stdout

    run(
        model,
        output,
        steps=steps,
        batch_size=batch_size,
        test_queries=test_queries,
        test_passages=test_passages,
        seed=seed,
        console=stdout(),
    )
