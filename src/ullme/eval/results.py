"""Scores as tables: per dataset and language, with averages by task type and over all, as in the paper's tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from mteb.abstasks import AbsTask
from mteb.results import TaskResult

from ullme.eval.tasks import carries, subset_languages


@dataclass(frozen=True)
class Score:
    """Main score x 100 of one task in one language.

    Attributes:
        task: name of the task.
        task_type: mteb's type of it, such as ``Retrieval``.
        language: ISO 639-3 code, as it was asked for.
        score: mean main score x 100 over the subsets that carry the language, and over the evaluated splits.
        metric: name of the main score, such as ``ndcg_at_10``.
        revision: revision of the dataset, ``local-`` and a hash for a local folder.
    """

    task: str
    task_type: str
    language: str
    score: float
    metric: str
    revision: str


@dataclass(frozen=True)
class EvaluationResults:
    """The scores of one model.

    Attributes:
        model: name of the model, as the results are kept under it.
        revision: hash of the model.
        scores: one entry per task and language.
        task_results: mteb's own results, one per task.
        folder: where they are kept; None if they are not.
    """

    model: str
    revision: str
    scores: tuple[Score, ...]
    task_results: tuple[TaskResult, ...]
    folder: Path | None = None

    @property
    def languages(self) -> list[str]:
        """Languages, in the order in which they first appear."""
        return list(dict.fromkeys(s.language for s in self.scores))

    def score(self, task: str, language: str | None = None) -> float:
        """The score of a task; of its only language if none is given."""
        found = [s.score for s in self.scores if s.task == task and language in (None, s.language)]
        if len(found) != 1:
            raise ValueError(
                f"score: {len(found)} scores of task {task!r} in language {language!r}; name one that exists"
            )
        return found[0]

    def by_type(self, language: str) -> dict[str, float]:
        """Mean over the datasets of each task type (paper, Table 2)."""
        of_language = [s for s in self.scores if s.language == language]
        types = sorted({s.task_type for s in of_language})
        return {t: fmean(s.score for s in of_language if s.task_type == t) for t in types}

    def average(self, language: str) -> float:
        """Mean over all datasets, each counted once whatever its type (the paper's "Avg.")."""
        return fmean(s.score for s in self.scores if s.language == language)

    def to_markdown(self) -> str:
        """A Markdown table: a row per dataset, then the average of each task type and of all; a column per language.

        An average over fewer datasets than its row counts, since not all have that language, says over how many.
        """
        languages = self.languages
        tasks = dict(sorted({s.task: s.task_type for s in self.scores}.items(), key=lambda item: (item[1], item[0])))
        cells = {(s.task, s.language): s.score for s in self.scores}
        rows = [[task, kind, *(_mean([cells.get((task, code))]) for code in languages)] for task, kind in tasks.items()]
        groups = {kind: [task for task in tasks if tasks[task] == kind] for kind in tasks.values()}
        for name, group in {**groups, "Average": list(tasks)}.items():
            means = [_mean([cells.get((task, code)) for task in group]) for code in languages]
            rows.append([f"**{name}**", f"{len(group)} datasets", *means])
        head = [["Dataset", "Type", *languages], ["---", "---", *("---:" for _ in languages)]]
        return "\n".join("| " + " | ".join(row) + " |" for row in head + rows) + "\n"


def language_scores(task: AbsTask, result: TaskResult, languages: Sequence[str] | None) -> list[Score]:
    """The main score x 100 of a task in each language: the mean over the subsets that carry it.

    Only subsets and splits that the task is narrowed to count: kept results may hold more.
    """
    kept = subset_languages(task)
    entries = [e for split in task.eval_splits for e in result.scores.get(split, ()) if _counts(e["hf_subset"], kept)]
    # What is kept of a task of one's own may have been scored when it was said to be in another language.
    spoken = [kept.get(e["hf_subset"]) or e["languages"] or () for e in entries]
    found = languages or sorted({code.split("-")[0] for codes in spoken for code in codes})
    scores = []
    for language in found:
        # mteb keeps six digits: a fresh score must not differ from the same score read again.
        both = zip(entries, spoken, strict=True)
        values = [round(float(e["main_score"]), 6) for e, codes in both if carries(codes, [language])]
        if values:
            meta = task.metadata
            scores.append(
                Score(meta.name, meta.type, language, 100 * fmean(values), meta.main_score, result.dataset_revision)
            )
    return scores


def _counts(subset: str, kept: dict[str, list[str]]) -> bool:
    # An aggregated task has one score, of the subset "default", whatever the subsets of its parts are called.
    return subset in kept or (subset == "default" and "default" not in kept)


def _mean(scores: Sequence[float | None]) -> str:
    """The mean of the scores that there are, and of how many if some are missing."""
    known = [score for score in scores if score is not None]
    if not known:
        return "-"
    return f"{fmean(known):.2f}" + (f" (of {len(known)})" if len(known) < len(scores) else "")
