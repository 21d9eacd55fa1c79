"""How far ``ullme encode`` is, on a terminal: rows, share of the characters, time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ullme.cli.console import stderr
from ullme.encode import Progress


class _Shown(Progress):
    """Progress as a bar, measured in characters: long texts come first in a shard, so rows would mislead."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task = bars.add_task("Reading", total=None, rows="0")
        self._rows, self._of = 0, ""

    def found(self, rows: int) -> None:
        self._rows += rows
        self._bars.update(self._task, rows=f"{self._rows}")

    def begin(self, rows: int, characters: int, done_rows: int, done_characters: int) -> None:
        self._bars.remove_task(self._task)
        self._rows, self._of = done_rows, f" of {rows}"
        # Only what is left: what an earlier run did would count as done in no time.
        left = characters - done_characters
        self._task = self._bars.add_task("Encoding", total=left, rows=f"{done_rows}{self._of}")

    def advance(self, rows: int, characters: int) -> None:
        self._rows += rows
        self._bars.update(self._task, advance=characters, rows=f"{self._rows}{self._of}")


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """Progress on stderr, where someone watches it."""
    console = stderr()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]} rows"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        yield _Shown(bars)
