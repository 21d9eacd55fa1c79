"""``ullme data``: training data checked, converted, mined for negatives and counted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ullme.cli import model_options as options

if TYPE_CHECKING:
    from ullme.apps.data_check import EvaluationTexts, Length
    from ullme.data import DataSource

data = typer.Typer(help="Check, convert, mine and count training data in any usual format.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(metavar="DATA", help="A file, a pattern in quotes, a folder or a hub name.")]
Sources = Annotated[list[str], typer.Argument(metavar="DATA...", help="Files, patterns, folders or hub names.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", help="jsonl, parquet, triplets, tevatron, flagembedding, beir, msmarco ...; default by looking."
    ),
]
Split = Annotated[str | None, typer.Option(help="Of a collection or dataset; default train.")]
To = Annotated[str | None, typer.Option(help="pairs (default), triplets, tevatron, flagembedding, beir, msmarco.")]


@data.command()
def check(
    sources: Sources,
    format_name: Format = None,
    split: Split = None,
    against: Annotated[
        list[str] | None, typer.Option(help="A task, BEIR folder or file that must not be trained on; repeatable.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Local data of the tasks, as <org>/<name>.")] = None,
    model: Annotated[str | None, typer.Option(help="Count this model's tokens in place of words.")] = None,
    longest: Annotated[int | None, typer.Option(min=1, help="Of a text: 1000 words, or 512 tokens.")] = None,
    report: Annotated[Path | None, typer.Option(help="A .jsonl file for every finding.")] = None,
) -> None:
    """Report what is wrong and where: bad rows, duplicates, over-long texts, test texts. Exit code 1: do not train."""
    from ullme.apps.data_check import check_data, reported
    from ullme.cli.console import stdout
    from ullme.reproduce.overlap import normalised

    listed = [_source(path, format_name, split) for path in sources]
    with reported(report, _read_by(listed, against or [], data_dir)) as tell:
        length = _length(model, longest)
        found = check_data(listed, _tests(against, data_dir), length=length, normalised=normalised, tell=tell)
    stdout().print(found.table())
    if not found.good:
        raise typer.Exit(1)


@data.command()
def convert(
    source: Source,
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="A .jsonl or .parquet file; a folder for beir, msmarco.")
    ],
    format_name: Format = None,
    to: To = None,
    split: Split = None,
    drop: Annotated[list[str] | None, typer.Option(help="instruction or scores: leave out.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad rows out; else one is enough to stop.")
    ] = False,
) -> None:
    """Write pairs in another format: all of them, or nothing."""
    from ullme.cli.console import stderr, stdout
    from ullme.data.convert import convert as run

    done = run(_source(source, format_name, split), output, to, drop=drop or (), skip_bad=skip_bad)
    for complaint in done.complaints:
        stderr().print(complaint, soft_wrap=True, markup=False)
    left_out = f"; {done.skipped} bad rows left out" if done.skipped else ""
    stdout().print(f"{done.rows} rows in {output}{left_out}", soft_wrap=True, markup=False)


@data.command()
def stats(
    sources: Sources,
    format_name: Format = None,
    split: Split = None,
    model: Annotated[str | None, typer.Option(help="Count this model's tokens too.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Folder for pictures of the lengths.")] = None,
) -> None:
    """Count lengths, negatives and duplicates."""
    from ullme.apps.data_stats import data_stats, plot_stats, token_counter
    from ullme.cli.console import stdout

    found = data_stats(
        [_source(path, format_name, split) for path in sources], token_counter(model) if model is not None else None
    )
    for table in found.tables():
        stdout().print(table)
    for path in plot_stats(found, plots) if plots is not None else ():
        stdout().print(f"Picture: {path}", soft_wrap=True, markup=False)


@data.command()
def mine(
    model: options.Model,
    source: Source,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A .jsonl or .parquet file, or a folder.")],
    format_name: Format = None,
    to: To = None,
    split: Split = None,
    corpus: Annotated[Path | None, typer.Option(help="Passages beside the positives: as for ullme encode.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Negatives of a row.")] = 4,
    range_min: Annotated[int, typer.Option(min=0, help="Nearest candidates to pass over.")] = 0,
    range_max: Annotated[int | None, typer.Option(min=1, help="Candidates to look at.")] = None,
    relative_margin: Annotated[
        float | None, typer.Option(help="Below the positive's score by this share; -1: no margin.")
    ] = 0.05,
    absolute_margin: Annotated[float | None, typer.Option(help="Below the positive's score by this.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Highest score of a negative.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Lowest score of a negative.")] = None,
    sampled: Annotated[bool, typer.Option("--sampled", help="At random in range, not the nearest.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of that draw.")] = 0,
    cross_encoder: Annotated[str | None, typer.Option(help="Its scores decide in place of cosines.")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Write the scores, for distillation.")] = False,
    prompt: Annotated[str | None, typer.Option(help="Before every passage; default the model's own.")] = None,
    query_prompt: Annotated[str | None, typer.Option(help="Before every query; default the row's instruction.")] = None,
    embeddings: Annotated[Path | None, typer.Option(help="Folder to keep them in; default beside OUT.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Memory of a batch, in texts of 128 tokens.")] = 32,
    attention: options.Attention = None,
    pooling: options.Pooling = None,
    dtype: options.Dtype = None,
    max_length: options.MaxLength = None,
    device: options.Device = None,
) -> None:
    """Find hard negatives with any embedding model. The same command goes on where it was killed."""
    from functools import partial

    from ullme.apps.data_mine import Miner, mine_data
    from ullme.cli.console import stdout
    from ullme.cli.encode import load
    from ullme.cli.encode_progress import shown_progress
    from ullme.eval.identity import fingerprint

    pairs = _source(source, format_name, split)
    _require_apart(
        embeddings or output.with_name(f"{output.name.split('.')[0]}-embeddings"),  # as mine_data names it
        [*_files([pairs]), *([] if corpus is None else [str(corpus)])],
    )
    settings = options.stated(attention=attention, pooling=pooling, dtype=dtype, max_length=max_length)
    miner = Miner(model, partial(load, model, settings), fingerprint, prompt, query_prompt, device, batch_size)
    how: dict[str, Any] = {"count": count, "range_min": range_min, "range_max": range_max, "sampled": sampled}
    how |= {
        "relative_margin": None if (relative_margin or 0) < 0 else relative_margin,
        "absolute_margin": absolute_margin,
        "max_score": max_score,
    }
    how |= {"min_score": min_score, "seed": seed, "keep_scores": scores, "corpus": corpus, "kept": embeddings, "to": to}
    with shown_progress() as progress:
        how |= {"cross_encoder": _cross_encoder(cross_encoder, device), "progress": progress}
        done = mine_data(pairs, output, miner, **how)
    said = f"{done.negatives} negatives for {done.rows} rows in {output}; {done.without} rows have none"
    if done.without and range_max is None:
        said += "; a greater --range-max looks at more candidates"
    stdout().print(said, soft_wrap=True, markup=False)


def _source(path: str, format_name: str | None, split: str | None) -> DataSource:
    from ullme.data import DataSource
    from ullme.data.formats import require_format

    if format_name is not None:
        require_format(format_name)
    return DataSource(path=path, format=format_name, split=split)


def _length(model: str | None, longest: int | None) -> Length:
    from ullme.apps.data_check import WORDS, Length
    from ullme.apps.data_stats import token_counter

    if model is None:
        return WORDS._replace(most=longest or WORDS.most)
    return Length("tokens", token_counter(model), longest or 512)


def _tests(names: list[str] | None, data_dir: Path | None) -> Iterator[EvaluationTexts]:
    """The texts of evaluation tasks, by their names or files."""
    from ullme.apps.data_check import EvaluationTexts
    from ullme.eval.local import data_folder, with_local_data
    from ullme.eval.tasks import select_tasks
    from ullme.reproduce.overlap import texts_of

    root = data_folder(data_dir)
    for task in select_tasks(names) if names else ():
        yield EvaluationTexts(*texts_of(with_local_data(task, root) if root else task))


def _files(sources: Sequence[DataSource]) -> Iterator[str]:
    """The files and folders that sources name; of a pattern that none fits, nothing."""
    for source in sources:
        try:
            yield from source.files()
        except ValueError:  # said where it is read
            continue


def _read_by(sources: Sequence[DataSource], against: Sequence[str], data_dir: Path | None) -> Iterator[str | Path]:
    """The files and folders that a check reads, those that may hold the local data of tasks among them."""
    from ullme.eval.local import data_folder
    from ullme.eval.tasks import parts_of, select_tasks

    yield from _files(sources)
    yield from against
    root = data_folder(data_dir)
    named = [name for name in against if not os.path.exists(name)]
    if root is None or not named:
        return
    for path in (part.metadata.dataset["path"] for task in select_tasks(named) for part in parts_of(task)):
        yield root / path
        yield from root.glob(f"{path}@*")


def _require_apart(kept: Path, inputs: Sequence[str]) -> None:
    """Pass if no list of texts that ``mine`` keeps with its embeddings takes the place of what it reads.

    Raises:
        ValueError: one does.
    """
    from ullme.apps.data_check import is_within

    lists = [*kept.glob("passages.jsonl"), *kept.glob("queries-*.jsonl")]
    for place in inputs:
        folder = os.path.isdir(place) and kept.exists() and kept.samefile(place)
        if folder or (os.path.isfile(place) and any(is_within(file, place) for file in lists)):
            raise ValueError(f"embeddings: {str(kept)!r} would be written over {str(place)!r}; name another folder")


def _cross_encoder(name: str | None, device: str | None) -> Any:
    """The cross-encoder of this name.

    Raises:
        ValueError: it cannot be loaded.
    """
    if name is None:
        return None
    from sentence_transformers import CrossEncoder

    try:
        return CrossEncoder(name, device=device)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cross-encoder {name!r} cannot be loaded ({reason}); get a complete copy") from error
