"""The model card of a released adapter: use, scores, data, recipe, limits, licence of the base."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf

from ullme.config import RunConfig
from ullme.files import written
from ullme.models.packaged import PACKAGED_MODELS, PackagedModel
from ullme.reproduce.options import Options
from ullme.reproduce.results import RowResult, TaskScore, mean_over, shared_tasks
from ullme.reproduce.rows import BASES, FLOOR, NAMED
from ullme.reproduce.study import Job, Study
from ullme.reproduce.tables import Table

_CARD = """---
{metadata}---

# {title}

A LoRA adapter that turns `{base}` into a text embedder: the row {row} of a study by `ullme reproduce`.
{average:.2f} on average over {count} tasks of MTEB; {others}.

## Use

```bash
{install}ullme search {folder} notes.txt "how do I open a file?"
{export}
```

```python
from ullme.models import ULLME

model = ULLME.from_pretrained("{folder}")
embeddings = model.encode(["How do I open a file?", "Pass its path to open()."])
```

## Scores

{scores}
Of this folder in float32, with ullme {ullme}; `scores.json` has the revision of each data set.
{one_score}

## Data

{data}
Rows that a scored split holds were left out, and texts cut at {words} words.

## Recipe

{by}{batch} queries a step, {steps} steps, seed {seed}; negatives of each query: {negatives}, of at most {mined} found.

```yaml
{recipe}```

Made again, from folders with the data and the tasks:

```bash
{command}
```

## Limits

- Trained on texts of {words} words at most; reads {max_length} tokens of a text, unless `max_length` is raised.
  Texts of more tokens, and languages that the tasks do not have, were not tried.
- {steps} steps are few: it is a row of a comparison of methods, not of a search for the best embedder. It was chosen by
  its scores on these tasks, which flatters them a little.{beside}
- It fits the weights of `{base}`{rounded}, and is refused on others.

## Licence

{licence}. The data sets have licences of their own: look at them before another use.
"""

#: What the hub calls a type of task.
_HUB_TASKS = {"Classification": "text-classification", "Clustering": "clustering", "Retrieval": "retrieval"}
#: Of a run file, what makes the model.
_RECIPE = {
    "model": ("lora", "pooling", "attention", "echo", "max_length"),
    "trainer": ("learning_rate", "warmup_steps", "bf16"),
}


def write_card(
    study: Study,
    job: Job,
    config: RunConfig,
    options: Options,
    scores: Sequence[TaskScore],
    results: Sequence[RowResult],
    folder: Path,
    refusal: str | None = None,
) -> Path:
    """Write ``README.md`` into the folder of a released model.

    Args:
        study: whose row it is.
        job: the row and its seed.
        config: its run file as it was carried out.
        options: of the command.
        scores: what the folder scores.
        results: what else is done in the study, to compare with.
        folder: the model.
        refusal: why the model cannot be exported, if it cannot.
    """
    packaged = PACKAGED_MODELS.get(study.model.lower())
    compared = compared_rows(results, scores)
    tasks = [score.task for score in scores]
    negatives = config.data.negatives_per_query
    text = _CARD.format(
        **study.budget.model_dump(include={"words", "mined"}),
        steps=config.trainer.max_steps,
        negatives="all" if negatives is None else negatives,
        metadata=OmegaConf.to_yaml(_metadata(study, folder, scores, packaged)),
        title=folder.name,
        base=_name(study.model),
        row=job.row.label,
        ullme=version("ullme"),
        average=fmean(s.score for s in scores),
        count=len(scores),
        others="; ".join(f"{r.label}: {mean_over(r.by_task, tasks):.2f}" for r in compared)
        or "nothing else was scored beside it",
        install=f"{packaged.install}\n" if packaged else "",
        folder=folder,
        export=_export(folder, refusal),
        scores=_scores(scores, compared).markdown(),
        one_score=_one_score(study, folder, scores[0].task),
        data=_data(study.data.sources).markdown(),
        batch=config.trainer.per_device_train_batch_size,
        seed=job.seed,
        recipe=OmegaConf.to_yaml(_recipe(config)),
        command=_command(study, job, options, folder),
        max_length=config.model.max_length // (2 if config.model.echo else 1),  # echo reads a text twice within it
        by=_trained_by(job, results),
        beside=_beside(job, results),
        rounded=f" as the package `{packaged.module}` carries them, rounded to about four bits" if packaged else "",
        licence=f"The base is under `{packaged.licence}`" if packaged else "That of the base",
    )
    return written(folder / "README.md", text)


def _export(folder: Path, refusal: str | None) -> str:
    if refusal:
        return f"# ullme export refuses it: {refusal.partition(';')[0]}"
    return f"ullme export {folder} exported/       # for sentence-transformers and all that reads its directories"


def _name(model: str) -> str:
    """A model's name; of a local folder its last part, since a card is read elsewhere."""
    return Path(model).name if Path(model).exists() else model


def compared_rows(results: Sequence[RowResult], scores: Sequence[TaskScore]) -> list[RowResult]:
    """The better of the untrained modes, and the floor, where they have all that the model was scored on."""
    tasks = [score.task for score in scores]
    whole = [r for r in results if set(tasks) <= r.by_task.keys()]
    bases = [r for r in whole if r.row in BASES]
    best = [max(bases, key=lambda r: mean_over(r.by_task, tasks))] if bases else []
    return [*best, *(r for r in whole if r.row == FLOOR)]


def _own(job: Job, results: Sequence[RowResult]) -> list[RowResult]:
    return [result for result in results if (result.row, result.seed) == (job.row.name, job.seed)]


def _trained_by(job: Job, results: Sequence[RowResult]) -> str:
    """By which commit the row was trained, which need not be the one that releases it."""
    commits = [result.ran_on.get("commit") for result in _own(job, results)]
    return "".join(f"Trained by commit {commit[:7]}: " for commit in commits if commit)


def _beside(job: Job, results: Sequence[RowResult]) -> str:
    """The row's other seeds, and what scored higher in the same study, by its scores on the tasks that both have."""
    compared = [
        (other, mean_over(other.by_task, tasks) - mean_over(own.by_task, tasks))
        for own in _own(job, results)
        for other in results
        if other is not own and (tasks := shared_tasks([own.by_task, other.by_task]))
    ]
    seeds = [f"seed {other.seed} by {-gain:.2f}" for other, gain in compared if other.row == job.row.name and gain <= 0]
    higher = [f"{_titled(other)} by {gain:.2f}" for other, gain in compared if gain > 0]
    said = (("Below it, of the same row", seeds), ("Above it in the same study", higher))
    return "".join(f"\n  {what}: {'; '.join(found)}." for what, found in said if found)


def _titled(result: RowResult) -> str:
    return result.label if result.seed is None else f"{result.label} (seed {result.seed})"


def _one_score(study: Study, folder: Path, task: str) -> str:
    """How a score is had again; instructions other than mteb's own are the study's alone."""
    if not isinstance(study.prompts, str):
        return "They were scored with the instructions that `--prompts` names below."
    return f"`ullme eval {folder} --task {task} --prompts {study.prompts}` gives one of them."


def _scores(scores: Sequence[TaskScore], compared: Sequence[RowResult]) -> Table:
    head = ["Task", "Type", "Metric", "this model", *(r.label for r in compared)]
    rows = [
        [s.task, s.task_type, s.metric, f"{s.score:.2f}", *(f"{r.by_task[s.task]:.2f}" for r in compared)]
        for s in scores
    ]
    return Table("Main score x 100 of each task", head, rows, labels=3)


def _data(sources: Mapping[str, Mapping[str, Any]]) -> Table:
    counts = ("rows", "in a test", "trained on")
    rows = [[name, *(str(source[count]) for count in counts)] for name, source in sources.items()]
    return Table("Rows of each source", ["Source", *counts], rows)


def _recipe(config: RunConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json", exclude_unset=True)
    made = {part: {key: values[part][key] for key in keys if key in values[part]} for part, keys in _RECIPE.items()}
    return {"model": made["model"], "objectives": values["objectives"], "trainer": made["trainer"]}


def _command(study: Study, job: Job, options: Options, folder: Path) -> str:
    """The command that makes this very model, with the names of its folders alone."""
    said = {
        "model": _name(study.model),
        "budget": options.budget,
        "name": study.results.name,
        "data": options.data and options.data.name,
        "labelled": ",".join(options.labelled),
        "mteb-folder": options.mteb_folder and options.mteb_folder.name,
        "tasks": ",".join(options.tasks),
        "benchmark": options.benchmark,
        "prompts": options.prompts,
        "rows": job.row.name if job.row.name in NAMED else Path(job.row.stages[-1]).name,
        "seeds": str(job.seed),
        "release": str(folder),
    }
    lines = [f"--{name} {shlex.quote(str(value))}" for name, value in said.items() if value]
    return " \\\n    ".join(["ullme reproduce", *lines, shlex.join(options.overrides)]).rstrip(" \\\n")


def _metadata(
    study: Study, folder: Path, scores: Sequence[TaskScore], packaged: PackagedModel | None
) -> dict[str, Any]:
    """What the hub reads of a card."""
    found = [
        {
            "task": {"type": _HUB_TASKS.get(s.task_type, s.task_type.lower())},
            "dataset": {"type": "mteb", "name": f"MTEB {s.task}", "revision": s.revision},
            "metrics": [{"type": s.metric, "value": round(s.score, 2)}],
        }
        for s in scores
    ]
    licence = {"license": packaged.licence} if packaged else {}
    tags = ["ullme", "peft", "lora", "sentence-similarity", "feature-extraction", "mteb"]
    return {
        **licence,
        "base_model": packaged.hub if packaged else _name(study.model),
        "library_name": "ullme",
        "pipeline_tag": "sentence-similarity",
        "tags": tags,
        "model-index": [{"name": folder.name, "results": found}],
    }
