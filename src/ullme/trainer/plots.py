"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def plot_losses(log_history: Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw every loss of a run over its steps, training solid and evaluation dashed, and save it as a picture.

    A total that equals its only term is not drawn twice.

    Args:
        log_history: ``trainer.state.log_history``, or ``log_history`` in a checkpoint's ``trainer_state.json``.
        path: picture file; its ending decides the format.

    Raises:
        ValueError: nothing was logged.
    """
    from matplotlib.figure import Figure  # heavy, and no other part of training needs it

    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in log_history:
        for name, value in entry.items():
            if name == "loss" or (name.endswith("_loss") and name != "train_loss"):
                curves.setdefault(name, []).append((entry["step"], float(value)))
    if any(points == curves.get("loss") for name, points in curves.items() if name != "loss"):
        del curves["loss"]
    if not curves:
        raise ValueError("log_history: holds no loss; train with logging_steps at most the number of steps")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss")
    for name, points in sorted(curves.items()):
        style = "o--" if name.startswith("eval_") else "-"
        axes.plot(*zip(*points, strict=True), style, label=name.replace("_", " "), markersize=3)
    axes.grid(alpha=0.3)
    axes.legend()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
