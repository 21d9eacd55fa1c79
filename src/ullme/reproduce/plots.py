"""Pictures of a study: each task against Bi + CL, the losses and the rank agreement of every row over training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from ullme.reproduce.bootstrap import Interval, Scores, against, bootstrap, paired_differences, scores_of
from ullme.reproduce.results import RowResult
from ullme.reproduce.rows import COMPARED_WITH
from ullme.reproduce.tables import grouped

_PANELS_ACROSS = 4

#: What is drawn over training: file, axis, and which logged names belong to it.
CURVES: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("training", "loss", lambda name: name.endswith("_loss") and name not in ("train_loss", "eval_loss")),
    ("rank_agreement", "Kendall's tau of s_rt and s_gen", lambda n: n == "eval_rank_agreement"),
)


def write_plots(results: Sequence[RowResult], folder: Path) -> list[Path]:
    """Draw everything that there is something to draw of; gives back the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [draw_differences(results, folder / f"difference_to_{COMPARED_WITH}.png")]
    pictures += [draw_curves(results, folder / f"{name}.png", axis, belongs) for name, axis, belongs in CURVES]
    return [picture for picture in pictures if picture is not None]


def draw_differences(results: Sequence[RowResult], path: Path, other: str = COMPARED_WITH) -> Path | None:
    """One panel per row: its difference to the other row on each task and on average, with intervals.

    Of a task the seeds alone vary, so that with one seed it is a point; the average varies over tasks and seeds.
    None if there is no row to compare.
    """
    scores = scores_of(results)
    labels = {result.row: result.label for result in results}
    comparisons = against(scores, other)
    if not comparisons:
        return None
    figure, panels = _panels(len(comparisons), height=0.28 * len(_tasks(scores)) + 1.6)
    for axes, comparison in zip(panels, comparisons, strict=True):
        intervals = task_intervals(scores, comparison.row, other)
        names = [*intervals, "average"]
        _draw_intervals(axes, [*intervals.values(), comparison.difference])
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_title(labels[comparison.row], fontsize=9)
        axes.set_xlabel(f"points above {labels[other]}", fontsize=8)
    return _saved(figure, path)


def task_intervals(scores: Scores, row: str, other: str) -> dict[str, Interval]:
    """The difference on each task by itself, with the interval over seeds."""
    tasks, difference_KS = paired_differences(scores, row, other)
    return {task: bootstrap(difference_S[None]) for task, difference_S in zip(tasks, difference_KS, strict=True)}


def draw_curves(results: Sequence[RowResult], path: Path, axis: str, belongs: Callable[[str], bool]) -> Path | None:
    """One panel per logged name, one line per row: the mean over its seeds, and where there are several their range."""
    found = {name: by_row for name, by_row in curves_of(results, belongs).items() if by_row}
    if not found:
        return None
    labels = {result.row: result.label for result in results if result.history}
    colours = dict(zip(labels, _colours(), strict=False))
    figure, panels = _panels(len(found), height=3.2, beside=2.2)
    lines: dict[str, Any] = {}
    for axes, (name, by_row) in zip(panels, sorted(found.items()), strict=True):
        style = "o-" if name.startswith("eval_") else "-"
        lines |= {row: _draw_curve(axes, curve, style, colours[row]) for row, curve in by_row.items()}
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.set_ylabel(axis, fontsize=8)
    rows = [row for row in labels if row in lines]
    figure.legend([lines[row] for row in rows], [labels[row] for row in rows], loc="outside right upper", fontsize=7)
    return _saved(figure, path)


def curves_of(
    results: Sequence[RowResult], belongs: Callable[[str], bool]
) -> dict[str, dict[str, dict[float, list[float]]]]:
    """Logged name -> row -> step -> the values of its seeds."""
    found: dict[str, dict[str, dict[float, list[float]]]] = {}
    for row, group in grouped(results).items():
        for entry in (entry for result in group for entry in result.history):
            for name in filter(belongs, entry):
                found.setdefault(name, {}).setdefault(row, {}).setdefault(entry["step"], []).append(float(entry[name]))
    return found


def _draw_curve(axes: Any, curve: dict[float, list[float]], style: str, colour: Any) -> Any:
    """The mean of the seeds at each step, and their range behind it; gives back the line."""
    steps = sorted(curve)
    (line,) = axes.plot(steps, [np.mean(curve[s]) for s in steps], style, color=colour, markersize=3)
    axes.fill_between(steps, [min(curve[s]) for s in steps], [max(curve[s]) for s in steps], color=colour, alpha=0.2)
    return line


def _colours() -> Iterator[Any]:
    """Ten strong colours, then their ten light ones, over and over."""
    from matplotlib import colormaps

    return cycle(colormaps["tab20"](i) for i in (*range(0, 20, 2), *range(1, 20, 2)))


def _draw_intervals(axes: Any, intervals: Sequence[Interval]) -> None:
    """A line from end to end and a point at the mean, one below the other; the last one, the average, in black."""
    places = range(len(intervals))
    colours = ["tab:blue"] * (len(intervals) - 1) + ["black"]
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.hlines(places, [i.low for i in intervals], [i.high for i in intervals], colors=colours)
    axes.scatter([i.mean for i in intervals], places, c=colours, s=12, zorder=3)
    axes.grid(alpha=0.3)
    axes.invert_yaxis()


def _tasks(scores: Scores) -> set[str]:
    return {task for seeds in scores.values() for by_task in seeds.values() for task in by_task}


def _panels(count: int, height: float, beside: float = 0.0) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # heavy, and only pictures need it

    across = min(count, _PANELS_ACROSS)
    down = -(-count // across)
    figure = Figure(figsize=(4.2 * across + beside, height * down), layout="constrained")
    return figure, [figure.add_subplot(down, across, i + 1) for i in range(count)]


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path
