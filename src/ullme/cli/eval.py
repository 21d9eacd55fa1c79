"""``ullme eval``: a model's scores on MTEB."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ullme.cli import model_options as options


def evaluate(
    model: options.Model,
    task: Annotated[list[str] | None, typer.Option(help="An mteb name, or your own BEIR folder or pairs.")] = None,
    benchmark: Annotated[list[str] | None, typer.Option(help='"MTEB(eng, v1)", or a folder of your own.')] = None,
    task_type: Annotated[list[str] | None, typer.Option(help="Every text task of a type, such as STS.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="ISO 639-3 code, such as eng; default all.")] = None,
    subset: Annotated[list[str] | None, typer.Option(help="A subset where a language has several.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="A split in place of the task's own.")] = None,
    prompts: Annotated[str | None, typer.Option(help="task (mteb's instructions), none, or own (the model's).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Local datasets, as <org>/<name>: works offline.")] = None,
    results_dir: Annotated[Path | None, typer.Option(help="Where results are kept; default mteb's cache.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Run again what is kept.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Memory of a batch, in texts of 128 tokens.")] = 32,
    attention: options.Attention = None,
    pooling: options.Pooling = None,
    dtype: options.Dtype = None,
    max_length: options.MaxLength = None,
    device: options.Device = None,
) -> None:
    """Score any model on MTEB tasks: one saved by ullme, of the hub, of sentence-transformers or registered in mteb."""
    from ullme import eval as evaluation
    from ullme.cli.console import stdout

    settings = options.stated(attention=attention, pooling=pooling, dtype=dtype, max_length=max_length)
    asked: dict[str, Any] = {"languages": language, "task_types": task_type, "hf_subsets": subset, "eval_splits": split}
    evaluation.select_tasks(task, benchmark, **asked)  # an unknown name is refused before a model is loaded
    loaded = evaluation.load_model(model, **settings)
    results = evaluation.evaluate(
        options.place(loaded, device) if hasattr(loaded, "to") else loaded,
        task,
        benchmark,
        **asked,
        prompts=prompts,
        data_dir=data_dir,
        results_dir=results_dir,
        overwrite=overwrite,
        batch_size=batch_size,
    )
    stdout().print(results.to_markdown(), soft_wrap=True, markup=False)
    if results.folder is not None:
        stdout().print(f"Results in mteb's format: {results.folder}", soft_wrap=True, markup=False)
