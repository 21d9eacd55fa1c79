"""``ullme report``: a run as one HTML file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Folder that ullme train, quickstart or reproduce wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The HTML file; default RUN/report.html.", dir_okay=False)
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Improved and worse queries to show of each; 0 loads no model.")
    ] = 5,
    pairs: Annotated[
        list[str] | None, typer.Option(help="Rows to take them from, in place of the run's held-out ones; repeatable.")
    ] = None,
    score_base: Annotated[
        bool, typer.Option("--score-base", help="Score the base model on the run's tasks too; takes as long again.")
    ] = False,
) -> None:
    """Write one HTML file of a run: what was trained on what, curves, scores before and after, examples."""
    from ullme.apps.report import report as write
    from ullme.cli.console import stderr, stdout

    written = write(run, output, examples=examples, pairs=pairs or (), score_base=score_base, drawings=_drawings)
    for line in written.missing:
        stderr().print(f"not in the report: {line}", soft_wrap=True, markup=False)
    stdout().print(f"Report: {written.place}", soft_wrap=True, markup=False)


def _drawings(study: Path) -> list[tuple[str, Callable[[Path], Any]]]:
    """The pictures of a study: those that ``ullme reproduce`` draws."""
    from functools import partial

    from ullme.reproduce.plots import CURVES, draw_curves, draw_differences
    from ullme.reproduce.results import load_result, load_results

    digests = {load_result(path).made_of for path in (study / "rows").glob("*.json")}
    results, _ = load_results(study, digests)
    curves = {
        f"{name.replace('_', ' ').capitalize()} over the steps; a band is the range over seeds.": partial(
            draw_curves, results, axis=axis, belongs=belongs
        )
        for name, axis, belongs in CURVES
    }
    return [("Points above Bi + CL, with intervals.", partial(draw_differences, results)), *curves.items()]
