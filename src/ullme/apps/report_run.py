"""What a report says of one training run: what was trained on what, its curves, its scores, its examples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ullme.apps.report_examples import Comparison
from ullme.apps.report_files import RunFiles
from ullme.apps.report_page import Block, Facts, Grid, Picture, Section, Text
from ullme.apps.report_pictures import inline_svg
from ullme.apps.report_scores import before_and_after, task_scores
from ullme.data import DataSource
from ullme.trainer.plots import plot_curves

_HELD_OUT = {
    "eval_loss": "loss on held-out rows",
    "eval_rank_agreement": "rank agreement on held-out rows",
}

#: Values of an objective's options that say nothing.
_OFF: tuple[Any, ...] = (None, False, [], {}, "")


def subtitle(run: RunFiles) -> str:
    """One sentence of what was trained how."""
    config = run.config
    how = f"a LoRA adapter of rank {config.model.lora.r}" if config.model.lora else "all weights"
    if config.model.adapter_path:
        how = "an existing adapter, further"
    terms = " + ".join(o.type for o in config.objectives if o.weight)
    return f"{config.model.name_or_path}, {how}, {config.model.attention} attention, {terms}"


def tiles(run: RunFiles) -> list[tuple[str, str, str]]:
    """The figures that matter most of training."""
    state, batch = run.state, run.config.trainer.per_device_train_batch_size
    found = [("steps", f"{state['global_step']:,}", f"of {state['max_steps']:,}, batch {batch}")] if state else []
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    if losses:
        found.append(("training loss", f"{losses[-1]:.3f}", f"from {losses[0]:.3f}"))
    for name, label in _HELD_OUT.items():
        values = [entry[name] for entry in run.history if name in entry]
        if values:
            found.append((label, f"{values[-1]:.3f}", f"from {values[0]:.3f}"))
    return found


def sections(
    run: RunFiles, comparison: Comparison | None, count: int, base: list[list[str]] | None = None
) -> list[Section]:
    """The parts of the report of a run, those of which there is nothing to say without blocks."""
    scores = task_scores(run.scores, base) if run.scores else []
    return [
        Section("What was trained on what", [_model(run), _training(run), _objectives(run), _data(run)]),
        Section("Curves", curves(run.history), "Training is solid, held-out rows are dashed."),
        Section("Scores", scores, "Main score x 100 of each task, after training."),
        *(compared(comparison, count) if comparison else []),
        Section("Made with", _machine(run)),
    ]


def compared(comparison: Comparison, count: int) -> list[Section]:
    """The base model against the trained one on the same rows, and the rows that moved most."""
    question = comparison.question
    asked = f"{question.source}: each query looks for its positive among {len(question.passages)} passages"
    before = f"the LLM before training under {comparison.base.name.removeprefix('base, ')} attention, which found more"
    rows = {name: found.scores for name, found in comparison.models.items()}
    return [
        Section(
            "Where the right passage stands",
            before_and_after(rows, comparison.trained.name),
            f"{asked[0].upper()}{asked[1:]}, by cosine.",
        ),
        Section(
            "Examples that moved most",
            comparison.examples(count),
            f"Places gained or lost by the positive, among {len(question.passages)} passages. Before is {before}.",
        ),
    ]


def curves(history: Sequence[dict[str, Any]]) -> list[Block]:
    """The run's picture as ``ullme train`` draws it; nothing where no loss was logged."""
    if not any("loss" in entry for entry in history):
        return []
    svg = inline_svg(partial(plot_curves, history), "curves")
    return [Picture(svg, "What training logged, over its steps.")] if svg else []


def _model(run: RunFiles) -> Facts:
    model = run.config.model
    rows = [
        ("base model", model.name_or_path + (f", revision {model.revision}" if model.revision else "")),
        ("attention", model.attention),
        ("pooling", model.pooling),
        ("longest text", f"{model.max_length:,} tokens"),
        ("weights in", model.dtype + (f", quantized to {model.quantization}" if model.quantization else "")),
        ("adapter", _adapter(run)),
    ]
    if model.merged_adapters:
        rows.append(("merged before", ", ".join(model.merged_adapters)))
    told = {"echo": model.echo, "EOS appended": model.append_eos, "chat template": model.chat_template}
    rows += [(name, "yes") for name, value in told.items() if value]
    return Facts(rows, "Model")


def _adapter(run: RunFiles) -> str:
    model = run.config.model
    if model.lora is None:
        return f"trained further: {model.adapter_path}" if model.adapter_path else "none: all weights were trained"
    targets = model.lora.target_modules
    named = targets if isinstance(targets, str) else ", ".join(targets)
    dropout = f", dropout {model.lora.dropout}" if model.lora.dropout else ""
    return f"LoRA, rank {model.lora.r}, alpha {model.lora.alpha}{dropout}, on {named}"


def _training(run: RunFiles) -> Facts:
    trainer, state = run.config.trainer, run.state
    steps = f"{state['global_step']:,} of {state['max_steps']:,}" if state else f"none yet of {trainer.max_steps:,}"
    processes = run.record["calls"][-1]["processes"] if run.record and run.record["calls"] else 1
    batch = f"{trainer.per_device_train_batch_size} queries"
    precision = "bfloat16 autocast" if trainer.bf16 else "float16 autocast" if trainer.fp16 else "as the weights"
    shares = f"{trainer.warmup_steps:g} warm-up" + (" of all steps" if 0 < trainer.warmup_steps < 1 else " steps")
    rows = [
        ("steps", steps),
        ("batch", batch if processes == 1 else f"{batch} on each of {processes} processes"),
        ("learning rate", f"{trainer.learning_rate:g}, {trainer.lr_scheduler_type}, {shares}"),
        ("precision", precision),
        ("negatives of a query", _or("all of the row", run.config.data.negatives_per_query)),
        ("seed", str(trainer.seed)),
    ]
    if run.config.reference:
        rows.append(("original LLM's likelihoods", str(run.config.reference)))
    return Facts(rows, "Training")


def _objectives(run: RunFiles) -> Grid:
    rows = []
    for objective in run.config.objectives:
        own = objective.model_dump(mode="json", exclude={"type", "weight"})
        rows.append(
            [
                objective.type,
                f"{objective.weight:g}",
                ", ".join(_option(*item) for item in own.items() if item[1] not in _OFF),
            ]
        )
    return Grid(["Objective", "weight", "options"], rows, "Objectives", numbers=1)


def _data(run: RunFiles) -> Grid:
    """A row per source; how many rows it has is what the run counted, and else not known."""
    data, counted = run.config.data, (run.record or {}).get("rows") or {}
    rows = []
    for part, sources in (("train", data.train), ("held_out", data.eval)):
        numbers = list((counted.get(part) or {}).items())
        for i, source in enumerate(sources):
            name, count = numbers[i] if i < len(numbers) else (source.name or Path(source.path).name, None)
            rows.append([name, part.replace("_", " "), f"{count:,}" if count is not None else "–", _options(source)])
    return Grid(["Data", "for", "rows", "read as"], rows, "Data", labels=2, numbers=1)


def _options(source: DataSource) -> str:
    told = source.model_dump(exclude={"path", "name"}, exclude_defaults=True)
    return ", ".join([source.path, *(f"{key} {value}" for key, value in told.items())])


def _machine(run: RunFiles) -> list[Block]:
    """Machine and versions of the last call, and what each took; a sentence where the run did not record them."""
    calls = run.record["calls"] if run.record else []
    if not calls:
        return [Text("This run did not record on which machine and with which versions it was trained.")]
    last, several = calls[-1], len(calls) > 1
    rows = [("device", last["device"]), *machine(last["hardware"])]
    rows += [(f"call {i}" if several else "trained", _took(call)) for i, call in enumerate(calls, start=1)]
    return [Facts(rows, "Machine"), Facts(list(versions(last["versions"], last["commit"])), "Versions")]


def machine(hardware: dict[str, Any]) -> list[tuple[str, str]]:
    """Facts about a machine, as ``run_record`` and a study's manifest write them."""
    cores = f"{hardware['cores']} cores ({hardware['threads']} used), {hardware['memory_gib']} GiB of memory"
    return [("processor", f"{hardware['cpu']}; {cores}"), ("GPUs", ", ".join(hardware["gpus"]) or "none")]


def versions(installed: dict[str, str], commit: dict[str, Any]) -> list[tuple[str, str]]:
    """Facts about versions; the commit where it is known."""
    rows = list(installed.items())
    if commit.get("commit"):
        rows.append(("commit", commit["commit"][:12] + (" and changes" if commit["changed"] else "")))
    return rows


def _took(call: dict[str, Any]) -> str:
    seconds = call["seconds"]
    return f"{call['started']}, " + ("interrupted" if seconds is None else duration(seconds))


def duration(seconds: float) -> str:
    """Seconds in words: ``42 s``, ``3 min 20 s``, ``5 h 10 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _option(name: str, value: Any) -> str:
    return name if value is True else f"{name} {value}"


def _or(default: str, value: Any) -> str:
    return default if value is None else str(value)
