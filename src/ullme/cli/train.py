"""``ullme train``: a run file to a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    run_file: Annotated[Path, typer.Argument(help="YAML of the run; see configs/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For instance trainer.learning_rate=1e-4")
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the batch, token and memory plan, and train nothing.")] = False,
) -> None:
    """Train from a run file. The same command resumes a run that was interrupted."""
    from ullme.cli.console import stdout
    from ullme.config import read_run_file

    config = read_run_file(run_file, overrides or [])
    if dry_run:
        from ullme.apps.plan import plan

        stdout().print(plan(config).table())
        return
    from ullme.apps.train import train as run

    folder = run(config).folder
    stdout().print(f"Trained model in {folder}; score it with: ullme eval {folder} --task STSBenchmark", soft_wrap=True)
