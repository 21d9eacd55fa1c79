"""``ullme check``: whether an architecture's attention can be switched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def check(
    model: Annotated[str | None, typer.Argument(help="A hub name, model folder or packaged model.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Probe a tiny random model of every architecture.")] = False,
    output: Annotated[Path | None, typer.Option(help="With --all: the Markdown table to write.")] = None,
) -> None:
    """Probe whether a model's attention can be switched between causal and bidirectional."""
    if (model is None) == (not every):
        raise ValueError("check: name one model, or give --all for every architecture")
    from ullme.apps import check as app
    from ullme.cli.console import stdout

    stdout().print(app.check_all(output) if every else app.check_model(model))
