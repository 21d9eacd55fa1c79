"""``ullme check``: whether an architecture's attention can be switched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ullme.cli import model_options as options


def check(
    model: Annotated[str | None, typer.Argument(help="A hub name, model folder, GGUF file or packaged model.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Probe a tiny random model of every architecture.")] = False,
    output: Annotated[Path, typer.Option(help="With --all: the table to write.")] = Path("docs/architectures.md"),
    attn_implementation: Annotated[str | None, typer.Option(help="Try only this one, for instance sdpa.")] = None,
    dtype: options.Dtype = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run model code from the hub.")] = False,
) -> None:
    """Probe whether a model's attention can be switched between causal and bidirectional."""
    if (model is None) == (not every):
        raise ValueError("check: name one model, or give --all for every architecture")
    settings = options.stated(dtype=dtype)
    from ullme.apps.check import check_all, check_model
    from ullme.cli.console import stdout

    if model is None:
        stdout().print(check_all(output))
        return
    how: dict[str, Any] = {**settings, "attn_implementation": attn_implementation, "revision": revision}
    stdout().print(check_model(model, trust_remote_code=trust_remote_code, **how))
