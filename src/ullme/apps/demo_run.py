"""A run's folder as the demo page shows it: what is there of curves, scores and the run file."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ullme.apps.demo_html import note_html, text_html
from ullme.apps.run_folder import RUN_FILE
from ullme.apps.train import CURVES_FILE, SCORES_FILE
from ullme.trainer.plots import plot_curves
from ullme.trainer.resume import checkpoints

#: Pictures that a run leaves, the fullest first: of ``ullme train`` and of ``ullme quickstart``.
_PICTURES = (CURVES_FILE, "loss.png")
#: Scores of ``ullme quickstart``.
_QUICKSTART_SCORES = "scores.json"
#: Logged values that are no figure of the training itself.
_NOT_SHOWN = ("runtime", "per_second", "_flos", "epoch", "step")


@dataclass(frozen=True)
class RunFound:
    """What a folder holds of a run.

    Attributes:
        folder: as it was named.
        history: the trainer's log, of the newest checkpoint.
        picture: curves that were drawn already, where there is no log.
        scores: tables of cells, head first.
        run_file: the text of ``run.yaml``.
    """

    folder: Path
    history: tuple[dict[str, Any], ...]
    picture: Path | None
    scores: tuple[list[list[str]], ...]
    run_file: str | None


def read_run(folder: Path) -> RunFound:
    """Read what there is of a run; of one that is under way, what it has logged so far.

    Args:
        folder: of ``ullme train``, or of ``ullme quickstart``, which has it in ``run/``.

    Raises:
        ValueError: no such folder, nothing of a run in it, or a damaged log.
    """
    places = [place for place in (folder, folder / "run") if place.is_dir()]
    if not places:
        raise ValueError(f"run: {str(folder)!r} is no folder; name the output folder of ullme train")
    pictures = [place / name for name in _PICTURES for place in places if (place / name).is_file()]
    run_files = [place / RUN_FILE for place in places if (place / RUN_FILE).is_file()]
    found = RunFound(
        folder=folder,
        history=next((history for place in places if (history := _history(place))), ()),
        picture=pictures[0] if pictures else None,
        scores=tuple(scores for place in places for scores in _scores(place)),
        run_file=run_files[0].read_text(encoding="utf-8") if run_files else None,
    )
    if not (found.history or found.picture or found.scores or found.run_file):
        raise ValueError(f"run: {str(folder)!r} holds no run; name the output folder of ullme train")
    return found


def run_html(found: RunFound) -> str:
    """Curves, the logged figures and the run file."""
    run_file = "" if found.run_file is None else _folded(RUN_FILE, f"<pre>{text_html(found.run_file)}</pre>")
    scores = "".join(_table("scores", table) for table in found.scores)
    figures = _figures(found.history) or note_html("Nothing was logged: no checkpoint of this run is there.")
    return (
        f"<div class='u-run' data-run='{text_html(str(found.folder))}'><div class='u-curves'>{_curves(found)}</div>"
        f"<div class='u-tables'>{scores}{figures}{run_file}</div></div>"
    )


def _history(folder: Path) -> tuple[dict[str, Any], ...]:
    """The log of the newest checkpoint."""
    kept = checkpoints(folder)
    if not kept:
        return ()
    newest = folder / kept[-1].name / "trainer_state.json"
    try:
        return tuple(json.loads(newest.read_text(encoding="utf-8"))["log_history"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(newest)!r} is damaged ({error}); remove its checkpoint folder") from error


def _scores(folder: Path) -> list[list[list[str]]]:
    tables = []
    if (folder / SCORES_FILE).is_file():
        lines = (folder / SCORES_FILE).read_text(encoding="utf-8").splitlines()
        cells = [[cell.strip() for cell in line.strip(" |").split("|")] for line in lines if line.startswith("|")]
        tables.append([row for row in cells if not set("".join(row)) <= set("-: ")])
    if (folder / _QUICKSTART_SCORES).is_file():
        scores = json.loads((folder / _QUICKSTART_SCORES).read_text(encoding="utf-8"))
        rows = {name.replace("_", " "): row for name, row in scores.items() if isinstance(row, Mapping)}
        names = list(dict.fromkeys(name for row in rows.values() for name in row))
        tables.append([["model", *names], *([n, *(f"{100 * row[m]:.1f}" for m in names)] for n, row in rows.items())])
    return tables


def _curves(found: RunFound) -> str:
    """The curves as a picture inside the page; drawn from the log, else as the run left them."""
    if any("loss" in entry for entry in found.history):
        with tempfile.TemporaryDirectory() as folder:
            return _image(plot_curves(found.history, Path(folder) / "curves.svg"), "image/svg+xml")
    if found.picture is not None:
        return _image(found.picture, "image/png")
    return note_html("No loss was logged yet.")


def _image(path: Path, kind: str) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f"<img alt='curves of the run' src='data:{kind};base64,{content}'>"


def _figures(history: Sequence[Mapping[str, Any]]) -> str:
    """A table of what was logged more than once: its first and its last value."""
    series: dict[str, list[float]] = {}
    for entry in history:
        for name, value in entry.items():
            if isinstance(value, int | float) and not name.endswith(_NOT_SHOWN):
                series.setdefault(name, []).append(float(value))
    rows = [
        [name.replace("_", " "), f"{values[0]:.4g}", f"{values[-1]:.4g}"] for name, values in sorted(series.items())
    ]
    return _table("logged", [["logged", "first", "last"], *rows]) if rows else ""


def _table(kind: str, cells: Sequence[Sequence[str]]) -> str:
    head, *rows = [[text_html(cell) for cell in row] for row in cells]
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<table data-table='{kind}'><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"
