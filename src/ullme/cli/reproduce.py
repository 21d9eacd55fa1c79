"""``ullme reproduce``: the paper's Table 2."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Of the budget (steps=50) or of every run file (trainer.learning_rate=1e-4)."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="A packaged model, hub name or model folder.")] = "smollm2-135m-instruct",
    budget: Annotated[str, typer.Option(help="smoke, small, hour, gpu or paper.")] = "smoke",
    name: Annotated[str | None, typer.Option(help="Of the study; default model and budget.")] = None,
    rows: Annotated[str | None, typer.Option(help="Rows or run files, by commas; default the whole table.")] = None,
    seeds: Annotated[str | None, typer.Option(help="For instance 0,1,2; default the budget's.")] = None,
    tasks: Annotated[str | None, typer.Option(help="MTEB tasks, name[:subset[:split]], by commas.")] = None,
    benchmark: Annotated[str | None, typer.Option(help='An MTEB benchmark, such as "MTEB(eng, v1)".')] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder or file of pairs, or a YAML list of sources; default documentation.")
    ] = None,
    labelled: Annotated[
        str | None, typer.Option(help="Sources, by commas, whose own negatives stay beside the mined ones.")
    ] = None,
    mteb_folder: Annotated[Path | None, typer.Option(help="Local MTEB datasets, as <org>/<name>.")] = None,
    prompts: Annotated[
        str, typer.Option(help="none, task (mteb's), wang (by type of task), or a YAML file task -> instruction.")
    ] = "none",
    configs: Annotated[
        Path | None, typer.Option(help="Folder of the rows' run files; default those of configs/reproduce, as shipped.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Where results/<name> is put.")] = Path("results"),
    work: Annotated[Path, typer.Option(help="Where checkpoints and models are put.")] = Path("runs/reproduce"),
    release: Annotated[
        Path | None, typer.Option(help="Folder for the best trained model of these rows, its scores and its card.")
    ] = None,
) -> None:
    """Train and score every row of the paper's Table 2. The same command goes on where it was killed."""
    from ullme.cli.console import stdout
    from ullme.reproduce.command import reproduce as run
    from ullme.reproduce.options import Options
    from ullme.reproduce.rows import shipped_configs

    console = stdout()
    options = Options(
        model=model,
        budget=budget,
        name=name,
        rows=_listed(rows),
        seeds=_seeds(seeds),
        data=data,
        labelled=_listed(labelled) or (),
        tasks=_listed(tasks) or (),
        benchmark=benchmark,
        mteb_folder=mteb_folder,
        prompts=prompts,
        overrides=tuple(overrides or ()),
        configs=configs or shipped_configs(),
        results=results,
        work=work,
        release=release,
    )
    for table in run(options, console).values():
        console.print(table.markdown(), soft_wrap=True, markup=False)


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _seeds(text: str | None) -> tuple[int, ...] | None:
    parts = _listed(text)
    if parts is None:
        return None
    if not parts or not all(part.isdigit() for part in parts):
        raise ValueError(f"seeds: {text!r} is no list of seeds; write whole numbers by commas, such as 0,1,2")
    return tuple(int(part) for part in parts)
