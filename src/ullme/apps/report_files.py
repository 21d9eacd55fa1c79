"""What a run's folder holds, read for a report: a damaged file is told by its name and a cure."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ullme.apps.run_folder import MODEL_FOLDER, RUN_FILE
from ullme.apps.run_record import RECORD_FILE
from ullme.apps.train import SCORES_FILE
from ullme.config import RunConfig, read_run_file
from ullme.trainer.resume import checkpoints

STATE_FILE = "trainer_state.json"  # as Transformers names it
#: Keys that a file must have, and those that each entry of a list in it must have.
_STATE = {"global_step": (), "max_steps": (), "log_history": ("step",)}
_RECORD = {
    "rows": (),
    "calls": ("started", "seconds", "device", "processes", "commit", "versions", "hardware"),
}
RESUME = "the same ullme train command goes on"


@dataclass(frozen=True)
class RunFiles:
    """A training run as it lies on disk.

    Attributes:
        folder: where.
        config: its run file.
        state: the trainer's state at the last checkpoint; None where there is none.
        record: what it was carried out with (``ullme.apps.run_record``); None for a run without it.
        scores: the table of its evaluation, head first; None where there is none.
        model: folder of the trained model; None if the run has not ended, or goes on to more steps than it has.
    """

    folder: Path
    config: RunConfig
    state: dict[str, Any] | None
    record: dict[str, Any] | None
    scores: list[list[str]] | None
    model: Path | None

    @property
    def history(self) -> list[dict[str, Any]]:
        """What training logged, up to the last checkpoint."""
        return self.state["log_history"] if self.state else []

    @property
    def missing(self) -> list[str]:
        """What the run lacks, each with its cure."""
        steps = f"step {self.state['global_step']} of {self.state['max_steps']}" if self.state else "no checkpoint yet"
        wanted = self.config.eval.asked and self.scores is None and self.model is not None
        found = {
            f"The run has not ended ({steps}), so there is no model: {RESUME}.": self.model is None,
            f"No losses: nothing was logged before the last checkpoint; {RESUME}.": not self.history,
            f"Rows, machine and versions: {RECORD_FILE} is not there; ullme train writes it.": self.record is None,
            f"Scores on {', '.join(self._asked)}: {SCORES_FILE} is not there; {RESUME}.": wanted,
        }
        return [text for text, lacks in found.items() if lacks]

    @property
    def _asked(self) -> list[str]:
        asked = self.config.eval
        return [*asked.tasks, *asked.benchmarks, *asked.task_types]


def read_run(folder: Path) -> RunFiles:
    """The files of a run.

    Raises:
        ValueError: one of them is damaged.
    """
    record = folder / RECORD_FILE
    scores = folder / SCORES_FILE
    model = folder / MODEL_FOLDER
    config, state = read_run_file(folder / RUN_FILE), last_state(folder)
    ended = not goes_on(config, state)
    again = "remove it, and the same ullme train command scores again"
    return RunFiles(
        folder,
        config,
        state,
        read_object(record, _RECORD, "remove it, and the report does without") if record.is_file() else None,
        read_markdown(scores, again) if ended and scores.is_file() else None,
        model if ended and model.is_dir() else None,
    )


def last_state(folder: Path) -> dict[str, Any] | None:
    """The trainer's state at a run's last checkpoint; None where there is none.

    Raises:
        ValueError: it is damaged.
    """
    kept = checkpoints(folder)
    again = "remove this checkpoint's folder, and the one before it is read"
    return read_object(folder / kept[-1].name / STATE_FILE, _STATE, again) if kept else None


def goes_on(config: RunConfig, state: Mapping[str, Any] | None) -> bool:
    """Whether more steps are asked of a run than it has taken: its model and scores are then of an earlier end."""
    return state is not None and state["global_step"] < max(state["max_steps"], config.trainer.max_steps)


def read_object(path: Path, keys: Mapping[str, Collection[str]], cure: str) -> dict[str, Any]:
    """The content of a JSON file that must have these keys, and in each entry of a list those given for it.

    Raises:
        ValueError: it is missing, is no such object, or lacks one; the message ends with the cure.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        lacking = [key for key in keys if key not in content]
        lacking += [
            f"{k}.{inner}" for k in keys if k not in lacking for inner in keys[k] for e in content[k] if inner not in e
        ]
        if not isinstance(content, dict) or lacking:
            raise ValueError(f"it lacks {lacking[0] if lacking else 'keys'}")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: is missing or damaged ({error}); {cure}") from error
    return content


def read_markdown(path: Path, cure: str) -> list[list[str]]:
    """The cells of the one table in a Markdown file, head first.

    Raises:
        ValueError: there is none.
    """
    try:
        rows = markdown_cells(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: is damaged ({error}); {cure}") from error
    if len(rows) < 2 or len({len(row) for row in rows}) != 1:
        raise ValueError(f"{path}: is damaged (no whole table in it); {cure}")
    return rows


def markdown_cells(text: str) -> list[list[str]]:
    """The cells of the table in a Markdown text, head first, without the line below the head and without bold."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    rows = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]
    return rows[:1] + rows[2:]


def read_csv(path: Path, cure: str) -> list[list[str]]:
    """The cells of a CSV file, head first.

    Raises:
        ValueError: it is empty, or its rows are of several lengths.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: is damaged ({error}); {cure}") from error
    if not rows or len({len(row) for row in rows}) != 1:
        raise ValueError(f"{path}: is damaged (no whole table in it); {cure}")
    return rows
