"""A study: what all rows have in common, and what each becomes by it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from mteb.abstasks import AbsTask

from ullme.apps.run_folder import MODEL_FOLDER
from ullme.config import RunConfig, read_run_file
from ullme.eval.local import data_folder, with_local_data
from ullme.reproduce.budgets import Budget
from ullme.reproduce.data import Prepared, digest, file_hash
from ullme.reproduce.rows import Row

#: How files of weights end.
_WEIGHTS = (".safetensors", ".bin", ".gguf")
#: What of a run changes no score.
_NO_MATTER = ("output_dir", "report_to", "use_cpu", "chunk_tokens", "logging_steps", "save_steps", "save_total_limit")


@dataclass(frozen=True)
class Study:
    """All that the rows of one table have in common.

    Attributes:
        model: packaged model, hub name or folder.
        budget: steps, batch, lengths, seeds.
        data: what is trained on.
        tasks: what is scored.
        left_out: tasks of the budget that the folder of tasks lacks.
        task_folder: local data of the tasks; None for the hub.
        prompts: as for :func:`ullme.eval.evaluate`.
        configs: folder of the rows' run files.
        overrides: ``section.key=value`` of every run file.
        bf16: whether training computes under bfloat16 autocast, and the saved model is scored in bfloat16.
        results: folder of scores, tables and plots.
        work: folder of data, checkpoints and models.
    """

    model: str
    budget: Budget
    data: Prepared
    tasks: Sequence[AbsTask]
    left_out: Sequence[str]
    task_folder: Path | None
    prompts: Any
    configs: Path
    overrides: tuple[str, ...]
    bf16: bool
    results: Path
    work: Path

    @property
    def dtype(self) -> str:
        """In which models are scored."""
        return "bfloat16" if self.bf16 else "float32"

    @cached_property
    def revisions(self) -> dict[str, str]:
        """The revision of each task's data, as a score on them names it: of local data a hash of their content."""
        root = data_folder(self.task_folder)
        tasks = [with_local_data(task, root) if root else task for task in self.tasks]
        return {task.metadata.name: task.metadata.revision for task in tasks}


@dataclass(frozen=True)
class Job:
    """A row with one seed; the seed of an untrained row is None."""

    row: Row
    seed: int | None

    @property
    def name(self) -> str:
        """For messages."""
        return self.row.name if self.seed is None else f"{self.row.name}, seed {self.seed}"


def jobs(rows: Iterable[Row], budget: Budget) -> list[Job]:
    """Every row with each of its seeds."""
    return [Job(row, seed) for row in rows for seed in (budget.seeds_of(row.name) if row.trained else (None,))]


def stage_configs(study: Study, job: Job) -> list[RunConfig]:
    """The runs of a row, one per stage: its run files with this study's model, data, budget and seed.

    Raises:
        ValueError: a run file is missing or wrong.
    """
    found: list[RunConfig] = []
    for stage in job.row.stages:
        path = study.configs / stage
        own = list(_overrides(study, job, read_run_file(path), path.stem))
        if found:
            merged = [*found[-1].model.merged_adapters, str(found[-1].trainer.output_dir / MODEL_FOLDER)]
            own.append(f"model.merged_adapters={json.dumps(merged)}")
        changes = job.row.changes if stage == job.row.stages[-1] else ()
        found.append(read_run_file(path, [*own, *study.overrides, *changes]))
    return found


def made_of(study: Study, job: Job) -> str:
    """A digest of all that decides a row's scores but the tasks: another one is another experiment."""
    content = {
        "row": job.row.name,
        "seed": job.seed,
        "model": model_identity(study.model),
        "untrained": job.row.untrained,
        "max_length": study.budget.max_length,
        "prompts": study.prompts,
        "overrides": study.overrides if job.row.trained else (),
    }
    if job.row.trained or job.row.untrained is not None:
        content["dtype"] = study.dtype
    if job.row.trained:
        content["data"] = {name: source.get("sha256") for name, source in study.data.sources.items()}
        content["held_out"] = file_hash(study.data.held_out) if study.data.held_out else None
        content["stages"] = [_portable(config) for config in stage_configs(study, job)]
    return digest(content)


def model_identity(model: str) -> str:
    """What tells a model from another, wherever it lies: a packaged or hub name as it is, a local one by its content.

    Of a local folder or file that is its name, its ``config.json``, and the names and sizes of its weights.
    """
    place = Path(model).expanduser().resolve()
    if not place.exists():
        return model
    weights = sorted(p for p in (place.iterdir() if place.is_dir() else [place]) if p.suffix in _WEIGHTS)
    config = place / "config.json"
    content = {
        "config": file_hash(config) if config.is_file() else None,
        "weights": {path.name: path.stat().st_size for path in weights},
    }
    return f"{place.name}@{digest(content)}"


def _overrides(study: Study, job: Job, config: RunConfig, stage: str) -> Iterator[str]:
    """What the study says in place of a run file."""
    budget = study.budget
    hides = any(objective.type == "mntp" for objective in config.objectives)  # learns from texts, not from pairs
    steps = budget.mntp_steps if hides else budget.steps
    pairs = [{"path": str(path)} for path in study.data.train.values()]
    values = {
        "model.name_or_path": study.model,
        "model.max_length": budget.max_length * (2 if config.model.echo else 1),
        "data.train": pairs,
        "data.negatives_per_query": None if hides else budget.negatives,
        "data.choice": "sampled",
        "trainer.output_dir": str(study.work / f"{job.row.name}-seed{job.seed}" / stage),
        "trainer.max_steps": steps,
        "trainer.per_device_train_batch_size": budget.batch_size,
        "trainer.per_device_eval_batch_size": budget.batch_size,
        "trainer.chunk_tokens": budget.chunk_tokens,
        "trainer.seed": job.seed,
        "trainer.logging_steps": max(1, steps // 50),
        "trainer.save_steps": max(1, steps // 15),
        "trainer.save_total_limit": 1,
        "trainer.report_to": "none",
        "trainer.bf16": study.bf16,
        "trainer.use_cpu": not torch.cuda.is_available(),
    }
    if study.data.held_out is not None and not hides:
        values |= {
            "data.eval": [{"path": str(study.data.held_out), "name": "held_out"}],
            "trainer.eval_steps": max(1, steps // budget.evaluations),
            "trainer.rank_agreement": True,
        }
    yield from (f"{key}={json.dumps(value)}" for key, value in values.items())


def _portable(config: RunConfig) -> dict[str, Any]:
    """A run without the places of its files, which another machine or folder has elsewhere."""
    values = config.model_dump(mode="json", exclude={"eval"})
    values["model"]["name_or_path"] = model_identity(config.model.name_or_path)
    values["trainer"] = {key: value for key, value in values["trainer"].items() if key not in _NO_MATTER}
    values["data"] = {key: value for key, value in values["data"].items() if key not in ("train", "eval")}
    values["model"]["merged_adapters"] = len(values["model"]["merged_adapters"])
    return values
