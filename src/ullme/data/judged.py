"""Retrieval collections as rows of pairs: passages, queries and judgements that name each other by ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from ullme.data.joins import Joins
from ullme.data.readers import Attempt, lines_of
from ullme.data.wording import shortened

TSV = (".tsv", ".tsv.gz")
#: mteb keeps grades as 32 bits.
_GREATEST_GRADE = 2**31 - 1
#: A row of a part: an id and its text, or a query, a passage and its grade.
Part = Iterator[tuple[str, tuple[Any, ...] | ValueError]]


@dataclass(frozen=True)
class Parts:
    """The files of a collection, and how each is read.

    Attributes:
        passages: ids, titles and texts.
        queries: the same.
        judgements: query ids, passage ids and grades; a query and passage are graded alike wherever they come.
        drawn: the same of triples, whose negatives nobody has to have judged: the highest grade counts.
    """

    passages: Callable[[], Part]
    queries: Callable[[], Part]
    judgements: Callable[[], Part]
    drawn: Callable[[], Part]

    def judge(self, joins: Joins) -> Iterator[ValueError]:
        """Put all judgements into ``joins``; what is wrong with them."""
        takers: tuple[tuple[Callable[[], Part], Callable[..., ValueError | None]], ...] = (
            (self.judgements, joins.add_judgement),
            (self.drawn, joins.add_drawn),
        )
        for part, take in takers:
            for at, row in part():
                error = row if isinstance(row, ValueError) else take(*row, at)
                if error:
                    yield error

    def rows(self) -> Iterator[Attempt]:
        """A row per judged query, in the order of the judgements; a grade above 0 makes a positive, others negatives.

        The number of a row counts judged queries from 1. Memory does not grow with the collection, which is copied
        into a temporary file. What is wrong with a part comes first, in the place of a row; it is then left out.
        """
        with Joins() as joins:
            for name, part in (("passages", self.passages), ("queries", self.queries)):
                for at, row in part():
                    error = row if isinstance(row, ValueError) else joins.add_text(name, *row, at)
                    if error:
                        yield 0, error
            yield from ((0, error) for error in self.judge(joins))
            yield from joins.rows()


def judgement(fields: list[Any], at: str) -> tuple[str, str, int] | ValueError:
    """Query id, passage id and grade of a line's or row's three fields; what is wrong with them."""
    query, passage, grade = fields
    try:
        if query in (None, "") or passage in (None, ""):
            return ValueError(f"{at}: an id is missing; write query id, passage id and grade")
        return str(query), str(passage), _whole(grade)
    except ValueError as error:
        return ValueError(f"{at}: score: {shortened(grade)} {error}; write 1 for a right passage, else 0")


def _whole(grade: Any) -> int:
    """A grade as an integer: pandas writes 1.0 where it means 1.

    Raises:
        ValueError: says why it is none; not which.
    """
    try:
        number = float("no" if isinstance(grade, bool) or "_" in str(grade) else grade)
    except (TypeError, ValueError, OverflowError):
        number = nan
    if not number.is_integer():
        raise ValueError("is no whole number")
    if abs(number) > _GREATEST_GRADE:
        raise ValueError("is beyond any grade")
    return int(number)


def tab_separated(path: Path, count: int, blank: bool = False) -> Iterator[tuple[str, list[str] | ValueError]]:
    """The tab-separated fields of every line; with ``blank`` an empty list for a line without any."""
    for number, line in lines_of(str(path)):
        at = f"{path}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            yield at, ValueError(f"{at}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8")
            continue
        fields = text.split("\t")
        if len(fields) != count and text.strip():
            said = f"{len(fields)} columns, not {count}, in {shortened(text)}"
            yield at, ValueError(f"{at}: {said}; separate them by single tabs, and write none into a text")
        elif text.strip() or blank:
            yield at, fields if text.strip() else []
