"""From any format of pairs to any other: a whole file, or none."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ullme.data.files import labels_of
from ullme.data.source import DataSource
from ullme.data.writers import require_target, writer_of
from ullme.files import aside

#: Complaints that are kept of rows that are left out.
_SHOWN = 20
Attempts = Iterable[dict[str, Any] | ValueError]


class Converted(NamedTuple):
    """What came of a conversion: rows written and rows left out, with the complaints about the first of these."""

    rows: int
    skipped: int
    complaints: tuple[str, ...]


def convert(
    source: DataSource,
    output: str | Path,
    to: str | None = None,
    *,
    drop: Sequence[str] = (),
    skip_bad: bool = False,
) -> Converted:
    """Write a source's pairs in another format, at a memory that does not grow with them.

    Args:
        source: what to read.
        output: the file (``.jsonl``, ``.parquet``) or folder (``beir``, ``msmarco``) to write; it appears when whole.
        to: ``pairs`` (the default), ``triplets``, ``tevatron``, ``flagembedding``, ``beir`` or ``msmarco``.
        drop: ``instruction``, ``scores``: what to leave out where the format cannot say it.
        skip_bad: leave bad rows out instead of refusing them all.

    Raises:
        ValueError: the first thing that is wrong, with its place; nothing is written then.
    """
    files = source.files()
    labels = labels_of(files, files[0] if len(files) == 1 else source.path)
    rows = (
        row if isinstance(row, ValueError) or row["instruction"] else {**row, "instruction": source.instruction}
        for row in source.attempts()
    )
    return write_rows(rows, labels, Path(output), to, drop=drop, skip_bad=skip_bad)


def write_rows(
    rows: Attempts,
    labels: Sequence[str],
    output: Path,
    to: str | None = None,
    *,
    drop: Sequence[str] = (),
    skip_bad: bool = False,
) -> Converted:
    """Write checked rows, or none of them; ``labels`` stand before the numbers of each file's rows in complaints.

    Raises:
        ValueError: as ``convert``; or the output is there already.
    """
    kind = require_target(output, to, drop)
    with aside(output) as folder:
        place = folder / output.name
        writer = writer_of(place, kind, to, drop)
        try:
            done = _written(rows, labels, writer, skip_bad)
        finally:
            writer.close()
        if not done.rows:
            raise ValueError(f"{labels[0]}: no row is good ({done.complaints[0]}); correct them")
        os.replace(place, output)
    return done


def _written(rows: Attempts, labels: Sequence[str], writer: Any, skip_bad: bool) -> Converted:
    count, skipped, complaints = 0, 0, list[str]()
    for row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            writer.write(row, f"{labels[row['file']]}:{row['row']}")
            count += 1
        except ValueError as error:
            if not skip_bad:
                raise
            skipped += 1
            complaints += [str(error)] if skipped <= _SHOWN else []
    return Converted(count, skipped, tuple(complaints))
