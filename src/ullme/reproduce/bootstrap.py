"""Is one row better than another? The paired bootstrap over tasks and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ullme.reproduce.results import RowResult, mean_over, shared_tasks
from ullme.reproduce.rows import BASES, CLAIMED_ORDER, COMPARED_WITH, FLOOR

DRAWS = 10_000
LEVEL = 0.95

#: Scores by row, then seed (None where nothing was trained), then task.
Scores = Mapping[str, Mapping[int | None, Mapping[str, float]]]


@dataclass(frozen=True)
class Interval:
    """A mean difference with its interval.

    Attributes:
        mean: mean difference in points, over tasks and seeds.
        low: lower end of the interval.
        high: upper end.
        tasks: how many tasks it is over.
        seeds: how many seeds both rows have; with one, the interval knows nothing of the seed.
    """

    mean: float
    low: float
    high: float
    tasks: int
    seeds: int


@dataclass(frozen=True)
class Comparison:
    """Is ``row`` above ``other``?"""

    row: str
    other: str
    difference: Interval

    @property
    def verdict(self) -> str:
        """``holds`` where the whole interval is above zero, ``reversed`` where it is below, else which way it leans."""
        d = self.difference
        if d.tasks < 2:
            return "one task: says nothing of others"
        if d.low > 0:
            return "holds"
        if d.high < 0:
            return "reversed"
        return "holds on average, not beyond chance" if d.mean > 0 else "does not hold, not beyond chance"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "verdict": self.verdict}


def scores_of(results: Iterable[RowResult]) -> dict[str, dict[int | None, dict[str, float]]]:
    """Results by row, seed and task."""
    found: dict[str, dict[int | None, dict[str, float]]] = {}
    for result in results:
        found.setdefault(result.row, {})[result.seed] = result.by_task
    return found


def paired_differences(scores: Scores, row: str, other: str) -> tuple[list[str], np.ndarray]:
    """The tasks that both rows have, and score of ``row`` minus score of ``other``, (tasks, seeds).

    A seed decides the batches of every row alike, so what two rows made of the same seed is compared. An untrained row
    is compared with each seed of the other.

    Raises:
        ValueError: the rows share no seed or no task.
    """
    a, b = scores[row], scores[other]
    trained = [set(seeds) for seeds in (a, b) if None not in seeds]
    seeds: list[int | None] = sorted(set.intersection(*trained)) if trained else [None]  # type: ignore[type-var]
    pairs = [(a.get(seed, a.get(None)), b.get(seed, b.get(None))) for seed in seeds]
    tasks = [t for t in next(iter(a.values())) if all(t in x and t in y for x, y in pairs if x and y)]
    if not pairs or not tasks:
        raise ValueError(f"rows: {row!r} and {other!r} share no seed or no task; run both with the same --seeds")
    return tasks, np.array([[x[t] - y[t] for x, y in pairs if x and y] for t in tasks])


def bootstrap(difference_KS: np.ndarray, draws: int = DRAWS, level: float = LEVEL, seed: int = 0) -> Interval:
    """The mean of paired differences, (tasks K, seeds S), with its percentile bootstrap interval.

    Tasks and seeds are drawn anew, each with replacement and independently of each other, and both rows are read at
    what was drawn (Efron and Tibshirani 1993, chapter 13, of a crossed design). A dimension of size one does not vary.
    """
    tasks, seeds = difference_KS.shape
    generator = np.random.default_rng(seed)
    task_DK = generator.integers(tasks, size=(draws, tasks))
    seed_DS = generator.integers(seeds, size=(draws, seeds))
    mean_D = difference_KS[task_DK[:, :, None], seed_DS[:, None, :]].mean((1, 2))
    low, high = np.quantile(mean_D, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference_KS.mean()), float(low), float(high), tasks, seeds)


def compare(scores: Scores, row: str, other: str) -> Comparison:
    """Is ``row`` above ``other``? ValueError if they share no seed or no task."""
    return Comparison(row, other, bootstrap(paired_differences(scores, row, other)[1]))


def better_base(scores: Scores) -> str | None:
    """The attention mode under which the untrained LLM scores higher, on average over the tasks that both have.

    None if none was scored, or the two share no task.
    """
    there = {name: scores[name][None] for name in BASES if name in scores}
    tasks = shared_tasks(there.values())
    return max(there, key=lambda name: mean_over(there[name], tasks)) if tasks else None


def claimed_order(scores: Scores) -> list[Comparison]:
    """Each adjacent pair of the ordering that the paper claims, of which both rows were run."""
    names = [better_base(scores) if name == "base" else name for name in CLAIMED_ORDER]
    there = [name for name in names if name is not None and name in scores]
    return _compared(scores, [(row, other) for other, row in zip(there, there[1:], strict=False)])


def against(scores: Scores, other: str | None) -> list[Comparison]:
    """Every other row against one."""
    return _compared(scores, [(row, other) for row in scores if row != other]) if other in scores else []


def references(scores: Scores) -> dict[str, str | None]:
    """What every row is compared with, by what it is called."""
    return {"bi_cl": COMPARED_WITH, "better_base": better_base(scores), "bag_of_words": FLOOR}


def _compared(scores: Scores, pairs: Sequence[tuple[str, Any]]) -> list[Comparison]:
    return [compare(scores, row, other) for row, other in pairs if _comparable(scores, row, other)]


def _comparable(scores: Scores, row: str, other: str) -> bool:
    """Whether the rows share a seed and a task; while a study is running, some do not."""
    a, b = scores[row], scores[other]
    seeds = None in a or None in b or bool(set(a) & set(b))
    return seeds and any(set(x) & set(y) for x in a.values() for y in b.values())
