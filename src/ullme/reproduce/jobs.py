"""One row of the tables with one seed: trained by its run files, scored, kept."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ullme.apps.environment import commit, hardware, versions
from ullme.apps.run_folder import MODEL_FOLDER
from ullme.apps.run_record import SECONDS, seconds_taken
from ullme.apps.train import train
from ullme.eval import EvaluationResults, evaluate
from ullme.models import ULLME
from ullme.reproduce.floor import BagOfWords
from ullme.reproduce.results import RowResult, TaskScore, file_of, load_result
from ullme.reproduce.rows import NAMED
from ullme.reproduce.study import Job, Study, made_of, stage_configs
from ullme.reproduce.tasks import LANGUAGES


def finished(study: Study, job: Job) -> RowResult | None:
    """The kept result of a row and seed, if it is of this very study and has every task.

    Raises:
        ValueError: the kept result is of another experiment, or damaged; or it lacks a task, and its model is gone.
    """
    kept = kept_result(study, job)
    if kept is None or study.revisions.keys() <= kept.by_task.keys():
        return kept
    trained_model(study, job)
    return None


def kept_result(study: Study, job: Job) -> RowResult | None:
    """What is kept of a row and seed, of whatever tasks.

    Raises:
        ValueError: it is of another experiment, or damaged.
    """
    place = file_of(study.results, job.row.name, job.seed)
    if not place.is_file():
        return None
    kept = load_result(place)
    if kept.made_of != made_of(study, job):
        raise ValueError(
            f"name: {str(place)!r} was made with another model, budget, data, prompts or run file; give another "
            "--name, or set them back"
        )
    return with_current_data(study, kept)


def with_current_data(study: Study, result: RowResult) -> RowResult:
    """A result without its scores on other data than the study's tasks of that name have.

    Of a task that the study does not have all is kept. Two revisions of the hub pass for the same data, since what is
    kept of one is taken for the other when it is scored again.
    """

    def same(score: TaskScore) -> bool:
        now = study.revisions.get(score.task, score.revision)
        return now == score.revision or not any(r.startswith("local-") for r in (now, score.revision))

    return replace(result, scores=tuple(score for score in result.scores if same(score)))


def trained_model(study: Study, job: Job) -> Path | None:
    """The folder of a kept row's model; None where nothing was trained.

    Raises:
        ValueError: it is no longer there.
    """
    if not job.row.trained:
        return None
    folder = stage_configs(study, job)[-1].trainer.output_dir / MODEL_FOLDER
    if not folder.is_dir():
        place = file_of(study.results, job.row.name, job.seed)
        raise ValueError(
            f"work: the model of {job.name} is not in {str(folder)!r}; give the --work where it is, or delete its file "
            f"{str(place)!r}, and it is trained again"
        )
    return folder


def run(study: Study, job: Job) -> RowResult:
    """Train and score a row with one seed, from where an earlier call was killed; keep the result.

    A row that is kept without all tasks is not trained again, and its scores of other tasks stay.

    Raises:
        ValueError: what training or evaluation says, or the model of a kept row is no longer there.
    """
    kept = kept_result(study, job)
    folder, history = _trained(study, job) if kept is None else (trained_model(study, job), kept.history)
    start = _now()
    model = _scored_model(study, job, folder)
    scored = evaluate(
        model,
        study.tasks,
        languages=LANGUAGES,
        prompts="none" if isinstance(model, BagOfWords) else study.prompts,
        data_dir=study.task_folder,
        results_dir=study.results / "mteb",
        show_progress_bar=False,
    )
    earlier = () if kept is None else kept.scores
    result = RowResult(
        row=job.row.name,
        label=job.row.label,
        seed=job.seed,
        made_of=made_of(study, job),
        scores=tuple({score.task: score for score in (*earlier, *task_scores(scored))}.values()),
        model=f"{scored.model}@{scored.revision}",
        history=history,
        seconds=(_training_seconds(study, job) if kept is None else kept.seconds) | _evaluation_seconds(start),
        ran_on={**commit(), "versions": versions(), "hardware": hardware()},
        run_file="" if job.row.name in NAMED else job.row.stages[-1],
    )
    result.save(study.results)
    return result


def task_scores(scored: EvaluationResults) -> tuple[TaskScore, ...]:
    """The scores of one model by task."""
    return tuple(TaskScore(s.task, s.task_type, s.score, s.metric, s.revision) for s in scored.scores)


def _trained(study: Study, job: Job) -> tuple[Path | None, list[dict[str, Any]]]:
    """The folder of a row's model and the log of its last stage; None and nothing without training."""
    folder, history = None, []
    for config in stage_configs(study, job):
        done = train(config)
        folder, history = done.folder, done.history
        del done
        gc.collect()  # a model and its optimiser hold each other
    return folder, history


def _scored_model(study: Study, job: Job, folder: Path | None) -> Any:
    """A row's model in the precision in which the study scores."""
    if folder is None and job.row.untrained is None:
        return BagOfWords()
    if folder is not None:
        model = ULLME.from_pretrained(folder, dtype=study.dtype)
    else:
        settings = dict(job.row.untrained or {})
        length = study.budget.max_length * (2 if settings.get("echo") else 1)
        model = ULLME(study.model, max_length=length, dtype=study.dtype, **settings)
    return placed(model)


def placed(model: ULLME) -> ULLME:
    """A model in eval mode, on the GPU where there is one."""
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _now() -> tuple[float, float]:
    """The clock, and the time of this process on all processors, which tells the cost where others work."""
    return time.monotonic(), time.process_time()


def _training_seconds(study: Study, job: Job) -> dict[str, float]:
    """Of all stages, and of all calls that a stage was interrupted into."""
    stages = [seconds_taken(config.trainer.output_dir) for config in stage_configs(study, job)]
    clock, processor = (round(sum(stage[name] for stage in stages), 1) for name in SECONDS)
    return {"training": clock, "training, processor": processor}


def _evaluation_seconds(start: tuple[float, float]) -> dict[str, float]:
    """Of the call that finished."""
    clock, processor = (round(now - then, 1) for now, then in zip(_now(), start, strict=True))
    return {"evaluation": clock, "evaluation, processor": processor}
