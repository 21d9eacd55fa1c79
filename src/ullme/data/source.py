"""One source of training pairs, as a run file names it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ullme.data.columns import roles_of
from ullme.data.dialects import DIALECTS
from ullme.data.files import files_of
from ullme.data.formats import attempts_at, container_of, place_word, require_format
from ullme.data.rows import RowReader


class DataSource(BaseModel):
    """One source of training pairs, as a run file names it.

    A row is a pair: ``query``, ``positive(s)`` and, where there are any, ``negative(s)`` and ``instruction``. It may
    bring a teacher's ``scores``, a number per positive and then per negative, or ``positive_score(s)`` and
    ``negative_score(s)`` apart. A row without query and positive may be a ``text`` alone, which is its own query and
    positive: for unsupervised contrastive learning and masked next-token prediction. One source may hold both kinds.
    A file of bare sentences has, say, ``columns: {text: sentence}``. The columns of sentence-transformers, Tevatron and
    FlagEmbedding are known.

    Attributes:
        path: a ``.jsonl`` (``.gz``) or ``.parquet`` file, several of them by a pattern (``data/part-*.parquet``), a
            folder that ``datasets`` saved, a BEIR or MS MARCO folder, a ``.tsv`` of triples, or a dataset's hub name.
        name: what the source is called in row ids and messages; default the file's name.
        format: ``jsonl``, ``parquet``, ``saved``, ``hub``, ``beir``, ``msmarco``, whose columns a file has
            (``triplets``, ``tevatron``, ``flagembedding``), or the import path ``module:name`` of a function outside
            ullme; default by the path and the columns.
        subset: configuration of a hub dataset.
        split: split of a dataset or collection that has several (default ``train``).
        columns: role -> column(s) where they differ from the names above; an empty list leaves a role unread.
        instruction: task instruction before every query of this source; a row's own comes first.
        limit: read only the first rows.
        weight: share of an epoch's rows that this source brings, relative to the weights of the others; all sources
            have one, or none has, and then every row comes once an epoch.
        in_batch_negatives: whether passages of other queries are negatives of its queries, and its passages those of
            other queries. False for labels, clusters and the like, where another row's passage may be right as well.
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
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    in_batch_negatives: bool = True

    @field_validator("format")
    @classmethod
    def _readable(cls, name: str | None) -> str | None:
        if name is not None:
            require_format(name)
        return name

    @field_validator("columns")
    @classmethod
    def _known_roles(cls, columns: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        roles_of(columns)
        return columns

    def files(self) -> list[str]:
        """What the path names: itself, or the files that fit a pattern.

        Raises:
            ValueError: no file fits the pattern.
        """
        return files_of(self.path)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The source's checked rows, one after another, in the columns of a pair.

        Raises:
            ValueError: the first thing that is wrong with the source, with its place and its cure.
        """
        for row in self.attempts():
            if isinstance(row, ValueError):
                raise row
            yield row

    def attempts(self) -> Iterator[dict[str, Any] | ValueError]:
        """As ``rows``, with the complaint about whatever is wrong in its place; what follows it is read too."""
        found = False
        files = enumerate(self.files())
        for row in islice(chain.from_iterable(self._file_attempts(*file) for file in files), self.limit):
            found = True
            yield row
        if not found:
            yield ValueError(f"{self.files()[0]}: no rows; write at least one pair")

    def stated(self, file: int) -> dict[str, Any]:
        """What a row has from its source and not from itself; ``file`` counts the source's files."""
        return {"file": file, "in_batch_negatives": self.in_batch_negatives}

    def reader(self, path: str) -> tuple[str, RowReader]:
        """What holds the rows of one of its files, and what reads one of them.

        Raises:
            ValueError: a file that does not exist, or whose name tells no format.
        """
        container = container_of(path, self.format)
        dialect = self.format if self.format in DIALECTS else None
        return container, RowReader(f"{path}, {place_word(path, container)}", roles_of(self.columns), dialect)

    def _file_attempts(self, number: int, path: str) -> Iterator[dict[str, Any] | ValueError]:
        try:
            container, reader = self.reader(path)
            for place, row in attempts_at(container)(path, self.subset, self.split):
                yield row if isinstance(row, ValueError) else self._attempt(reader, row, place, number)
        except ValueError as error:  # the rest of the file cannot be read
            yield error

    def _attempt(self, reader: RowReader, row: dict[str, Any], place: int, file: int) -> dict[str, Any] | ValueError:
        try:
            return {**reader.read(row, place), **self.stated(file)}
        except ValueError as error:
            return error


def weights_of(sources: Sequence[DataSource]) -> tuple[float, ...] | None:
    """The sources' weights; None where none has one.

    Raises:
        ValueError: some have a weight and some have none.
    """
    weights = [source.weight for source in sources if source.weight is not None]
    if weights and len(weights) < len(sources):
        has, lacks = (next(s.path for s in sources if (s.weight is None) is none) for none in (False, True))
        raise ValueError(f"{lacks}: weight: is missing, and {has} has one; give every source one, or none")
    return tuple(weights) or None
