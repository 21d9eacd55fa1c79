"""What one row came to with one seed, as a file: the row is done when it is there."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ullme.files import written
from ullme.reproduce.rows import NAMED


@dataclass(frozen=True)
class TaskScore:
    """Main score x 100 of a task."""

    task: str
    task_type: str
    score: float
    metric: str
    revision: str


@dataclass(frozen=True)
class RowResult:
    """A row, trained with one seed and scored.

    Attributes:
        row: name of the row.
        label: what stands in the tables.
        seed: seed of training; None where nothing was trained, which holds for every seed.
        made_of: digest of all that decides the row: model, run files, data, budget.
        scores: one entry per task.
        model: name and revision under which mteb's results are kept.
        history: what training logged, of the last stage.
        seconds: time of training, in all its calls, and of evaluation, in the call that finished.
        ran_on: commit, versions and machine of that call.
        run_file: of a row outside the tables, where its run file lies; else empty.
    """

    row: str
    label: str
    seed: int | None
    made_of: str
    scores: tuple[TaskScore, ...]
    model: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    ran_on: dict[str, Any] = field(default_factory=dict)
    run_file: str = ""

    @property
    def by_task(self) -> dict[str, float]:
        """Scores by name of the task."""
        return {score.task: score.score for score in self.scores}

    @property
    def average(self) -> float:
        """Mean over all tasks, each counted once."""
        return fmean(score.score for score in self.scores)

    def save(self, folder: Path) -> Path:
        """Write the file whole or not at all."""
        place = file_of(folder, self.row, self.seed)
        content = {key: value for key, value in asdict(self).items() if value or key != "run_file"}
        return written(place, json.dumps(content, indent=1) + "\n")


def shared_tasks(scores: Collection[Mapping[str, float]]) -> list[str]:
    """The tasks that all of these scores by task have, in the order of the first."""
    return [task for task in next(iter(scores), {}) if all(task in by_task for by_task in scores)]


def mean_over(by_task: Mapping[str, float], tasks: Iterable[str]) -> float:
    """Mean over these tasks, each counted once; the same tasks make two means comparable."""
    return fmean(by_task[task] for task in tasks)


def file_of(folder: Path, row: str, seed: int | None) -> Path:
    """Where the result of a row and seed stands."""
    return folder / "rows" / (f"{row}.json" if seed is None else f"{row}-seed{seed}.json")


def load_result(path: Path) -> RowResult:
    """A result from its file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        scores = tuple(TaskScore(**score) for score in content.pop("scores"))
        return RowResult(**content, scores=scores)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: is no result of a row ({error}); delete it, and the row is run again") from error


def load_results(folder: Path, made_of: Iterable[str]) -> tuple[list[RowResult], list[str]]:
    """The results of a folder that are made of one of these, in the order of the tables, and the files of the others.

    Raises:
        ValueError: a file is damaged.
    """
    wanted = set(made_of)
    place = {name: i for i, name in enumerate(NAMED)}
    found = {path.name: load_result(path) for path in sorted((folder / "rows").glob("*.json"))}
    kept = [result for result in found.values() if result.made_of in wanted]
    kept.sort(key=lambda r: (place.get(r.row, len(place)), r.row, -1 if r.seed is None else r.seed))
    return kept, [name for name, result in found.items() if result.made_of not in wanted]
