"""``ullme quickstart``: the whole path on real input."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    model: Annotated[str, typer.Option(help="A packaged model, hub name or model folder.")] = "smollm2-135m-instruct",
    output: Annotated[Path, typer.Option(help="Folder for the model, the plot and the scores.")] = Path(
        "runs/quickstart"
    ),
) -> None:
    """Fine-tune a small LLM on this machine's own Python documentation, score it before and after, search with it."""
    from ullme.apps.quickstart import quickstart as run

    run(model=model, output=output)
