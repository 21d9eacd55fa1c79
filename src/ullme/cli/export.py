"""``ullme export``: a model as a directory that other tools open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ullme.cli import model_options as options

if TYPE_CHECKING:
    from ullme.export import ExportReport, Recipe


def export(
    model: options.Model,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that does not exist yet, or is empty.")],
    keep_adapter: Annotated[
        bool, typer.Option("--keep-adapter", help="Adapter beside the original weights, not merged into them.")
    ] = False,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="sentence-transformers, and in it onnx or gguf; may be repeated."),
    ] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Embeddings of length 1.")] = False,
    no_prompts: Annotated[bool, typer.Option("--no-prompts", help="Leave the model's prompts out.")] = False,
    gguf_converter: Annotated[
        Path | None, typer.Option(help="llama.cpp's convert_hf_to_gguf.py; default: the one on the PATH.")
    ] = None,
    push_to_hub: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Upload it there as well.")] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push-to-hub: a new repository is public.")] = False,
    attention: options.Attention = None,
    pooling: options.Pooling = None,
    dtype: options.Dtype = None,
    max_length: options.MaxLength = None,
    device: options.Device = None,
) -> None:
    """Write a sentence-transformers directory, proven to give the same embeddings, and say what serves it."""
    from ullme.export import ExportOptions, export_model
    from ullme.export.hub import push_to_hub as upload
    from ullme.export.hub import require_uploadable

    how = ExportOptions(
        prompts={} if no_prompts else None,
        normalize=normalize,
        keep_adapter=keep_adapter,
        formats=tuple(formats or ()),
        gguf_converter=gguf_converter,
        recipe=_recipe(Path(model)),
    )
    if push_to_hub is not None:
        require_uploadable(push_to_hub, keep_adapter)
    elif public:
        raise ValueError("public: is for --push-to-hub; add it, or leave public out")
    settings = options.stated(attention=attention, pooling=pooling, dtype=dtype, max_length=max_length)
    _show(export_model(_loaded(model, device, settings), output, how))
    if push_to_hub is not None:
        _say(f"Uploaded: {upload(output, push_to_hub, private=not public)}")


def _loaded(model: str, device: str | None, settings: dict[str, Any]) -> Any:
    from ullme.eval.models import kind_of

    if kind_of(model) not in ("checkpoint", "causal-lm"):
        raise ValueError(f"model {model!r}: is a sentence-transformers model already; use it as it is")
    return options.embedder(model, device, settings)


def _recipe(model: Path) -> Recipe | None:
    """What the run file beside a trained model says of its training, without the places of files.

    None where there is none, or where it is that of more steps, which the run has been asked for since.
    """
    import yaml

    from ullme.apps.report_files import goes_on, last_state
    from ullme.apps.run_folder import MODEL_FOLDER, RUN_FILE
    from ullme.config import read_run_file
    from ullme.export import Recipe

    kept, scores = model.parent / RUN_FILE, model.parent / "scores.md"
    if model.name != MODEL_FOLDER or not kept.is_file() or goes_on(read_run_file(kept), last_state(model.parent)):
        return None
    run = yaml.safe_load(kept.read_text())
    wanted = "num_train_epochs max_steps per_device_train_batch_size learning_rate lr_scheduler_type warmup_steps seed"
    told = {
        "lora": run["model"].get("lora"),
        "objectives": run["objectives"],
        "trainer": {name: run["trainer"][name] for name in wanted.split() if name in run["trainer"]},
    }
    return Recipe(
        data=tuple(_source(source) for source in run["data"]["train"]),
        settings=yaml.safe_dump(told, sort_keys=False),
        scores=scores.read_text() if scores.is_file() else "",
    )


def _source(source: dict[str, Any]) -> str:
    """One line about a source of training pairs; of a local path its last part."""
    path = str(source["path"])
    name = str(source.get("name") or (Path(path).name if Path(path).exists() or Path(path).is_absolute() else path))
    more = [f"{key} {source[key]}" for key in ("subset", "split", "limit", "weight") if source.get(key) is not None]
    return f"{name} ({', '.join(more)})" if more else name


def _show(report: ExportReport) -> None:
    for case in report.compared:
        _say(f"same: {case.case} (largest difference {case.difference:.1e} of the largest value)")
    for remark in report.remarks:
        _say(f"not compared: {remark}")
    for note in report.notes:
        _say(f"{note.server}: {'ready' if note.ready else 'not ready'}; {note.says}")
    _say(f'Exported: {report.path}; open it: SentenceTransformer("{report.path}")')


def _say(line: str) -> None:
    from ullme.cli.console import stdout

    stdout().print(line, soft_wrap=True, markup=False)
