"""One source of training pairs, as a run file names it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ullme.data.columns import roles_of
from ullme.data.readers import format_of, reader_of
from ullme.data.rows import RowReader


class DataSource(BaseModel):
    """One source of training pairs, as a run file names it.

    A row is a pair: ``query``, ``positive(s)`` and, where there are any, ``negative(s)`` and ``instruction``. It may
    bring a teacher's ``scores``, a number per positive and then per negative, or ``positive_score(s)`` and
    ``negative_score(s)`` apart. A row without query and positive may be a ``text`` alone, which is its own query and
    positive: for unsupervised contrastive learning and masked next-token prediction. One source may hold both kinds.
    A FlagEmbedding file has ``columns: {positives: pos, negatives: neg, positive_scores: pos_scores, negative_scores:
    neg_scores}``, one of bare sentences, say, ``{text: sentence}``.

    Attributes:
        path: a ``.jsonl`` (``.gz``) or ``.parquet`` file, a folder that ``datasets`` saved, or a dataset's hub name.
        name: what the source is called in row ids and messages; default the file's name.
        format: ``jsonl``, ``parquet``, ``saved``, ``hub``, or the import path ``module:name`` of a function outside
            ullme; default by the path.
        subset: configuration of a hub dataset.
        split: split of a dataset that has several (default ``train``).
        columns: role -> column(s) where they differ from the names above; an empty list leaves a role unread.
        instruction: task instruction before every query of this source; a row's own comes first.
        limit: read only the first rows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    name: str | None = None
    format: str | None = None
    subset: str | None = None
    split: str | None = None
    columns: dict[str, str | list[str]] = Field(default_factory=dict)
    instruction: str | None = None
    limit: int | None = Field(default=None, ge=1)

    @field_validator("format")
    @classmethod
    def _readable(cls, name: str | None) -> str | None:
        if name is not None:
            reader_of(name)
        return name

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, columns: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        roles_of(columns)
        return columns

    def rows(self) -> Iterator[dict[str, Any]]:
        """The source's checked rows, one after another, in the columns of a pair.

        Raises:
            ValueError: the first thing that is wrong with the source, with its place and its cure.
        """
        path = str(Path(self.path).expanduser()) if self.path.startswith("~") else self.path
        chosen = format_of(path, self.format)
        reader = RowReader(f"{path}, {'line' if chosen == 'jsonl' else 'row'}", roles_of(self.columns))
        found = False
        for number, row in islice(reader_of(chosen)(path, self.subset, self.split), self.limit):
            found = True
            yield reader.read(row, number)
        if not found:
            raise ValueError(f"{path}: no rows; write at least one pair")
