"""``ullme encode``: texts to a folder of embeddings, in shards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ullme.cli import model_options as options

if TYPE_CHECKING:
    from ullme.encode import EncodeOptions, TextSource


def encode(
    model: options.Model,
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Texts: .txt, .jsonl, .parquet, a folder of these, a BEIR folder.")
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards and their manifest.json.")],
    column: Annotated[str | None, typer.Option(help="Column of the text; default text, passage, ...")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of the id; default id, _id, else the number.")] = None,
    title_column: Annotated[str | None, typer.Option(help="Column put before the text.")] = None,
    part: Annotated[str, typer.Option(help="Of a BEIR folder: corpus or queries.")] = "corpus",
    prompt: Annotated[str | None, typer.Option(help="Text before every text; default the model's own, if any.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Memory of a batch, in texts of 128 tokens.")] = 32,
    normalize: Annotated[bool, typer.Option(help="Scale every embedding to length 1.")] = False,
    truncate_dim: Annotated[int | None, typer.Option(min=1, help="Keep the first dimensions only.")] = None,
    precision: Annotated[
        str, typer.Option(help="Of the stored numbers: float32, float16, int8, uint8, binary or ubinary.")
    ] = "float32",
    storage: Annotated[str, typer.Option(help="npy (memory-mapped arrays) or parquet.")] = "npy",
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows of a shard: what an interruption can cost.")] = 16_384,
    text: Annotated[bool, typer.Option(help="Keep the texts beside the ids, for ullme search.")] = True,
    attention: options.Attention = None,
    pooling: options.Pooling = None,
    dtype: options.Dtype = None,
    max_length: options.MaxLength = None,
    device: options.Device = None,
    devices: Annotated[str | None, typer.Option(help="One process on each, for instance cuda:0,cuda:1.")] = None,
    ray: Annotated[bool, typer.Option("--ray", help="As a Ray Data job (needs ullme[ray]).")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="With --ray: actors; default one per GPU.")] = None,
) -> None:
    """Embed every text of a source. The same command continues where it was killed."""
    from ullme.encode import EncodeOptions, TextSource

    stored = EncodeOptions(
        prompt, normalize, truncate_dim, precision, storage=storage, shard_rows=shard_rows, keep_text=text
    )
    texts = TextSource(source, column, id_column, title_column, part)
    elsewhere = _workers(device, devices, ray, workers)
    settings = options.stated(attention=attention, pooling=pooling, dtype=dtype, max_length=max_length)
    where = {"device": device or ("cpu" if elsewhere else None), "workers": elsewhere, "batch_size": batch_size}
    _run(model, settings, texts, output, stored, **where)


def _run(
    model: str, settings: dict[str, Any], texts: TextSource, output: Path, stored: EncodeOptions, **where: Any
) -> None:
    from ullme.cli.console import stdout
    from ullme.cli.encode_progress import shown_progress
    from ullme.encode import encode_corpus

    how: dict[str, Any] = {"model": model, "settings": settings, "fingerprint": _fingerprint, **where}
    with shown_progress() as progress:
        manifest = encode_corpus(partial(load, model, settings), texts, output, stored, progress=progress, **how)
    shards = len(manifest["shards"])
    said = f"{manifest['rows']} embeddings of {manifest['dimension']} dimensions in {output} ({shards} shards)"
    stdout().print(f'{said}; search them: ullme search {output} "..."', soft_wrap=True, markup=False)


def load(model: str, settings: dict[str, Any], device: str | None) -> Any:
    """The model on a device; of a module, so that other processes can call it."""
    return options.embedder(model, device, settings)


def _fingerprint(model: Any) -> str | None:
    from ullme.eval.identity import fingerprint

    return fingerprint(model)


def _workers(device: str | None, devices: str | None, ray: bool, workers: int | None) -> Any:
    """The processes that were asked for; None where this one computes.

    Raises:
        ValueError: options that exclude each other, or Ray is not installed.
    """
    if sum(map(bool, (device, devices, ray))) > 1:
        raise ValueError("device, devices, ray: each says where to compute; give one of them")
    if workers and not ray:
        raise ValueError("workers: is for --ray; add it, or name devices instead")
    if ray:
        from ullme.encode.ray_job import on_ray, require_ray

        require_ray()
        return partial(on_ray, workers=workers)
    if devices is None:
        return None
    from ullme.encode.workers import on_devices

    named = [name.strip() for name in devices.split(",")]
    if not all(named):
        raise ValueError(f"devices: {devices!r} has an empty name; write for instance cuda:0,cuda:1")
    return partial(on_devices, devices=named)
