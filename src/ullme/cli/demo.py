"""``ullme demo``: a page to search a corpus with one or two models, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ullme.cli import model_options as options


def demo(
    model: Annotated[
        list[str], typer.Option("--model", help="A folder saved by ullme, a hub name, ...; again for a second one.")
    ],
    corpus: Annotated[
        Path, typer.Option(metavar="SOURCE", help="Passages: .txt (one per line), .jsonl, .parquet or a BEIR folder.")
    ],
    run: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Of ullme train: shown in a second tab.")] = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of the page.")] = 7860,
    column: Annotated[str | None, typer.Option(help="Column of the text; default text, passage, ...")] = None,
    index: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For the indexes; default in the user's cache.")
    ] = None,
    dtype: options.Dtype = None,
    max_length: options.MaxLength = None,
    device: options.Device = None,
) -> None:
    """Open a page that ranks the passages of a corpus. They are indexed once; the next start opens the index."""
    from ullme.apps.demo_page import require_gradio, require_port

    require_gradio()
    require_port(host, port)
    from ullme.apps.demo import DemoCorpus, PassageSource, SearchedModel, generation_scores, read_corpus, require_model
    from ullme.apps.demo_page import demo_page, serve
    from ullme.apps.demo_run import read_run
    from ullme.cli.console import stdout
    from ullme.cli.encode_progress import shown_progress
    from ullme.models.packaged import cache_folder

    read: DemoCorpus = read_corpus(PassageSource(corpus, column))
    if run is not None:
        read_run(run)
    names = list(dict.fromkeys(model))
    for name in names:
        require_model(name)
    settings = options.stated(dtype=dtype, max_length=max_length)
    folder = index or cache_folder() / "demo"
    models = [SearchedModel(name, options.embedder(name, device, settings), read, folder) for name in names]
    console = stdout()
    for searched in models:
        generation_scores(searched.model, "query", ["passage"])  # refused now rather than after the indexing
        console.print(f"Indexing {read.rows} passages with {searched.name} ...", soft_wrap=True, markup=False)
        with shown_progress() as progress:
            searched.index(searched.model.attention, progress)
    page = demo_page(models, f"{read.rows:,} passages of {corpus}", run)
    said = "The page is at {} (Ctrl-C ends it)"
    serve(page, host, port, lambda address: console.print(said.format(address), soft_wrap=True, markup=False))
