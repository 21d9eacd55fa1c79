"""``ullme encode``: a file of texts to a folder of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ullme.cli import model_options as options


def encode(
    model: options.Model,
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Texts: .txt (one per line), .jsonl or .parquet.")],
    output: Annotated[Path, typer.Argument(help="New folder for embeddings.npy, ids.txt and manifest.json.")],
    column: Annotated[str | None, typer.Option(help="Column of the text; default text, passage, ...")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of the id; default id, _id, else the number.")] = None,
    prompt: Annotated[str, typer.Option(help="Text before every text, left out of the pool.")] = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Memory of a batch, in texts of 128 tokens.")] = 32,
    normalize: Annotated[bool, typer.Option(help="Scale every embedding to length 1.")] = False,
    truncate_dim: Annotated[int | None, typer.Option(min=1, help="Keep the first dimensions only.")] = None,
    attention: options.Attention = None,
    pooling: options.Pooling = None,
    dtype: options.Dtype = None,
    max_length: options.MaxLength = None,
    device: options.Device = None,
) -> None:
    """Embed every text of a file. The folder appears complete or not at all."""
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

    from ullme import __version__
    from ullme.cli.console import stderr, stdout
    from ullme.encode import TextFile, encode_file, require_unused

    texts = TextFile(source, column, id_column)
    texts.check()
    require_unused(output)
    settings = options.stated(attention=attention, pooling=pooling, dtype=dtype, max_length=max_length)
    embedder = options.embedder(model, device, settings)
    how = {"prompt": prompt, "normalize_embeddings": normalize, "truncate_dim": truncate_dim}
    identity = embedder.fingerprint() if hasattr(embedder, "fingerprint") else None
    described = {"model": model, "fingerprint": identity, **how, "ullme": __version__}
    columns = (SpinnerColumn(), "Encoding", MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), disable=not stderr().is_terminal) as progress:
        bar = progress.add_task("", total=None)
        manifest = encode_file(
            lambda block: embedder.encode(block, batch_size=batch_size, show_progress_bar=False, **how),
            texts,
            output,
            described,
            advance=lambda rows: progress.advance(bar, rows),
        )
    stdout().print(f"{manifest['rows']} embeddings of {manifest['dimension']} dimensions in {output}", soft_wrap=True)
