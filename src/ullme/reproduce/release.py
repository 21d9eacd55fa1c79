"""A trained row as a model to hand out: its adapter in bfloat16, its scores read from there, its card."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from ullme.eval import evaluate
from ullme.export.refusals import refusal
from ullme.files import written
from ullme.models import ULLME
from ullme.models.lora import ADAPTER_CONFIG
from ullme.reproduce.jobs import finished, placed, task_scores, trained_model
from ullme.reproduce.options import Options
from ullme.reproduce.release_card import write_card
from ullme.reproduce.results import RowResult, mean_over, shared_tasks
from ullme.reproduce.rows import Row
from ullme.reproduce.study import Job, Study, jobs, stage_configs
from ullme.reproduce.tasks import LANGUAGES

SCORES = "scores.json"


def release(
    study: Study, rows: Iterable[Row], results: Sequence[RowResult], options: Options, folder: Path, console: Console
) -> Path:
    """Write the best trained model of some rows into a folder, score it from there, and say all that in its card.

    Best is the highest average over the tasks that all of them have. The adapter is rounded to bfloat16, and
    ``scores.json`` and the card hold what the folder scores in float32, not what the row did. Killed while scoring, the
    same call goes on.

    Args:
        study: whose data, tasks and prompts it is.
        rows: from which the model is taken; one that needs another adapter merged below its own is passed over.
        results: all that is done, for the card.
        options: of the command, so that the card can say how the model is made again.
        folder: where the model is put; a model there is replaced.
        console: for what is going on.

    Raises:
        ValueError: none of the rows is trained in one stage, or the model of the best one is no longer there.
    """
    job = best(study, rows)
    config = stage_configs(study, job)[-1]
    trained = trained_model(study, job)
    assert trained is not None
    console.print(f"Releasing {job.name} as {folder}, scored from there in float32.", markup=False)
    write_adapter(ULLME.from_pretrained(trained), folder)
    model = placed(ULLME.from_pretrained(folder, dtype="float32"))
    scored = evaluate(
        model,
        study.tasks,
        languages=LANGUAGES,
        prompts=study.prompts,
        data_dir=study.task_folder,
        results_dir=study.results / "mteb",
    )
    scores = task_scores(scored)
    content = {"study": study.results.name, "row": job.row.name, "seed": job.seed, "dtype": "float32"}
    written(folder / SCORES, json.dumps({**content, "scores": [asdict(s) for s in scores]}, indent=1) + "\n")
    return write_card(study, job, config, options, scores, results, folder, refusal(model))


def best(study: Study, rows: Iterable[Row]) -> Job:
    """The row and seed with the highest average over the tasks that all have, of those trained in one stage.

    Raises:
        ValueError: there is none.
    """
    listed = [job for job in jobs(rows, study.budget) if len(job.row.stages) == 1]
    done = {job: result.by_task for job in listed if (result := finished(study, job)) is not None}
    if not done:
        raise ValueError("release: none of the rows asked for is trained in one stage; ask for one, such as --rows grl")
    tasks = shared_tasks(done.values())
    return max(done, key=lambda job: mean_over(done[job], tasks))


def write_adapter(model: ULLME, folder: Path) -> None:
    """Save a model with its adapter in bfloat16, which names its base as others call it and no place of this machine.

    Raises:
        ValueError: the model has no adapter.
    """
    if model.peft_model is None:
        raise ValueError("release: the run trained all weights, and only an adapter is small enough; give model.lora")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(folder)
    place = folder / ADAPTER_CONFIG
    config = json.loads(place.read_text()) | {"base_model_name_or_path": model.settings.model_name_or_path}
    place.write_text(json.dumps(config, indent=2) + "\n")
