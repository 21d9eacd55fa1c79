"""A run's folder as the demo page shows it: curves, scores, logged figures, the run file, and what is missing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ullme.apps import report_files
from ullme.apps.demo_html import note_html, text_html
from ullme.apps.report_pictures import inline_svg
from ullme.apps.run_folder import RUN_FILE
from ullme.apps.train import CURVES_FILE, draw

#: What ``ullme quickstart`` puts beside its run.
_QUICKSTART_SCORES, _QUICKSTART_PICTURE = "scores.json", "loss.png"
#: Logged values that are no figure of the training itself.
_NOT_SHOWN = ("runtime", "per_second", "_flos", "epoch", "step")


@dataclass(frozen=True)
class RunFound:
    """What a folder holds of a run.

    Attributes:
        files: of the training.
        scores: tables of cells, head first.
        picture: curves that were drawn already.
    """

    files: report_files.RunFiles
    scores: tuple[list[list[str]], ...]
    picture: Path | None


def read_run(folder: Path) -> RunFound:
    """Read what there is of a run; of one that is under way, what it had logged at its last checkpoint.

    Args:
        folder: of ``ullme train``, or of ``ullme quickstart``, which has it in ``run/``.

    Raises:
        ValueError: no such folder, no run in it, or a damaged file.
    """
    place = next((place for place in (folder, folder / "run") if (place / RUN_FILE).is_file()), None)
    if place is None:
        what = f"holds no run (no {RUN_FILE})" if folder.is_dir() else "is no folder"
        raise ValueError(f"run: {str(folder)!r} {what}; name the output folder of ullme train")
    files = report_files.read_run(place)
    scores = [] if files.scores is None else [[[cell.strip("*") for cell in row] for row in files.scores]]
    if (folder / _QUICKSTART_SCORES).is_file():
        scores.append(_before_and_after(folder / _QUICKSTART_SCORES))
    pictures = [path for path in (place / CURVES_FILE, folder / _QUICKSTART_PICTURE) if path.is_file()]
    return RunFound(files, tuple(scores), pictures[0] if pictures else None)


def run_html(found: RunFound) -> str:
    """The run as a part of the page."""
    scores = "".join(_table("scores", table) for table in found.scores)
    missing = "".join(note_html(text, "missing") for text in found.files.missing)
    run_file = text_html((found.files.folder / RUN_FILE).read_text(encoding="utf-8"))
    return (
        f"<div class='u-run'><div class='u-curves'>{_curves(found)}</div><div class='u-tables'>{scores}"
        f"{_figures(found.files.history)}{missing}"
        f"<details><summary>{RUN_FILE}</summary><pre>{run_file}</pre></details></div></div>"
    )


def _before_and_after(path: Path) -> list[list[str]]:
    scores = report_files.read_object(path, {"fine_tuned": ()}, "remove it")
    rows = {name.replace("_", " "): row for name, row in scores.items() if isinstance(row, Mapping)}
    measures = list(scores["fine_tuned"])
    return [["model", *measures], *([name, *(f"{100 * row[m]:.1f}" for m in measures)] for name, row in rows.items())]


def _curves(found: RunFound) -> str:
    """The curves as a picture inside the page; drawn from the log, else as the run left them."""
    drawn = inline_svg(lambda path: draw(found.files.history, path), "curves")
    if drawn is not None:
        return str(drawn)
    if found.picture is None:
        return note_html("No loss was logged yet.")
    content = base64.b64encode(found.picture.read_bytes()).decode()
    return f"<img alt='curves of the run' src='data:image/png;base64,{content}'>"


def _figures(history: Sequence[Mapping[str, Any]]) -> str:
    """A table of what was logged: its first and its last value."""
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
