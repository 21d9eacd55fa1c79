"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isclose
from pathlib import Path
from typing import Any

Curves = dict[str, list[tuple[float, float]]]


def _is_loss(name: str) -> bool:
    return name == "loss" or (name.endswith("_loss") and name != "train_loss")


#: The parts of the picture: what stands at the axis, and which logged names belong there.
PANELS: dict[str, Callable[[str], bool]] = {
    "loss": _is_loss,
    "gradient norm": lambda name: name == "grad_norm",
    "rank agreement (Kendall's tau)": lambda name: name.endswith("rank_agreement"),
    "log-likelihood gap (nats)": lambda name: name.endswith(("_logp_gap", "_reward_margin")),
}


def plot_curves(log_history: Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw a run over its steps and save it as a picture: a panel for each of ``PANELS`` of which anything was logged.

    Training is solid, evaluation dashed. A total that equals its only term is not drawn twice.

    Args:
        log_history: ``trainer.state.log_history``, or ``log_history`` in a checkpoint's ``trainer_state.json``.
        path: picture file; its ending decides the format.

    Raises:
        ValueError: no loss was logged.
    """
    return _plot(log_history, path, PANELS)


def plot_losses(log_history: Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the losses of a run alone; otherwise as ``plot_curves``."""
    return _plot(log_history, path, {"loss": PANELS["loss"]})


def _plot(
    log_history: Iterable[Mapping[str, Any]], path: str | Path, panels: Mapping[str, Callable[[str], bool]]
) -> Path:
    from matplotlib.figure import Figure  # heavy, and no other part of training needs it

    history = list(log_history)
    drawn = {label: curves for label, belongs in panels.items() if (curves := _curves(history, belongs))}
    if "loss" not in drawn:
        raise ValueError("log_history: holds no loss; train with logging_steps at most the number of steps")
    figure = Figure(figsize=(7, 1 + 3 * len(drawn)), layout="constrained")
    for i, (label, curves) in enumerate(drawn.items()):
        axes = figure.add_subplot(len(drawn), 1, i + 1, xlabel="step", ylabel=label)
        for name, points in sorted(curves.items()):
            style = "o--" if name.startswith("eval_") else "-"
            axes.plot(*zip(*points, strict=True), style, label=name.replace("_", " "), markersize=3)
        axes.grid(alpha=0.3)
        axes.legend()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _curves(history: Iterable[Mapping[str, Any]], belongs: Callable[[str], bool]) -> Curves:
    """The points (step, value) of each logged name of a panel."""
    curves: Curves = {}
    for entry in history:
        for name, value in entry.items():
            if belongs(name):
                curves.setdefault(name, []).append((entry["step"], float(value)))
    total = curves.get("loss", [])
    if any(_same(points, total) for name, points in curves.items() if name != "loss"):
        del curves["loss"]
    return curves


def _same(points: list[tuple[float, float]], others: list[tuple[float, float]]) -> bool:
    """Whether two curves are the same but for what a log rounds away."""
    return len(points) == len(others) and all(
        step == other_step and isclose(value, other, rel_tol=1e-3, abs_tol=1e-4)
        for (step, value), (other_step, other) in zip(points, others, strict=True)
    )
