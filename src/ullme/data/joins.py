"""What a stream of rows has to remember, on disk: texts by id, judgements, and what was there before."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import Any

from ullme.data.readers import Attempt
from ullme.data.rows import titled
from ullme.data.wording import shortened

_TABLES = """
CREATE TABLE passages (id TEXT PRIMARY KEY, text TEXT, at TEXT);
CREATE TABLE queries (id TEXT PRIMARY KEY, text TEXT, at TEXT);
CREATE TABLE judged (query TEXT, passage TEXT, grade INTEGER, at TEXT, UNIQUE (query, passage));
CREATE TABLE seen (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID;
"""
_JOINED = """
WITH first AS (SELECT query, MIN(rowid) AS place FROM judged GROUP BY query)
SELECT first.place, judged.query, judged.passage, grade, judged.at, queries.text, passages.text
FROM first JOIN judged ON judged.query = first.query
LEFT JOIN queries ON queries.id = judged.query LEFT JOIN passages ON passages.id = judged.passage
ORDER BY first.place, judged.rowid
"""
_PAIR = "query = ? AND passage = ?"
_HIGHEST = """
INSERT INTO judged VALUES (?, ?, ?, ?)
ON CONFLICT (query, passage) DO UPDATE SET grade = excluded.grade, at = excluded.at WHERE excluded.grade > judged.grade
"""


class _Temporary:
    """A SQLite file that is gone when it is closed; it needs no room in memory beyond a cache of some megabytes."""

    def __init__(self) -> None:
        self._file = sqlite3.connect("", isolation_level=None)
        self._file.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_TABLES} BEGIN;")

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Remove the file."""
        self._file.close()


class Seen(_Temporary):
    """What was there before, by key."""

    def first(self, key: bytes, value: Any) -> Any:
        """What the key was given first; None where this is the first time, and then the value is kept."""
        with suppress(sqlite3.IntegrityError):
            self._file.execute("INSERT INTO seen VALUES (?, ?)", (key, value))
            return None
        return self.get(key)

    def get(self, key: bytes) -> Any:
        """What the key was given, or None."""
        found = self._file.execute("SELECT value FROM seen WHERE key = ?", (key,)).fetchone()
        return found[0] if found else None


class Joins(_Temporary):
    """The texts and judgements of a collection, put together by their ids."""

    def add_text(self, table: str, name: str, title: str, text: str, at: str) -> ValueError | None:
        """Take one of the ``passages`` or ``queries``; what is wrong if its id was there before."""
        try:
            self._file.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", (name, titled(title, text), at))
        except sqlite3.IntegrityError:
            (before,) = self._file.execute(f"SELECT at FROM {table} WHERE id = ?", (name,)).fetchone()
            return ValueError(f"{at}: id: {name!r} stands in {before} too; give each text an id of its own")
        except UnicodeEncodeError as error:
            return _half_a_character(error, at)
        return None

    def add_judgement(self, query: str, passage: str, grade: int, at: str) -> ValueError | None:
        """Take a judgement; what is wrong if query and passage were judged otherwise before."""
        try:
            taken = self._file.execute("INSERT OR IGNORE INTO judged VALUES (?, ?, ?, ?)", (query, passage, grade, at))
        except UnicodeEncodeError as error:
            return _half_a_character(error, at)
        if taken.rowcount:
            return None
        was, before = self._file.execute(f"SELECT grade, at FROM judged WHERE {_PAIR}", (query, passage)).fetchone()
        if was == grade:
            return None
        said = f"{grade} of passage {shortened(passage)} for query {shortened(query)}, which was {was} in {before}"
        return ValueError(f"{at}: score: {said}; remove one of the two")

    def add_drawn(self, query: str, passage: str, grade: int, at: str) -> ValueError | None:
        """Take a judgement by a passage's side in a triple; the highest grade of query and passage counts."""
        try:
            self._file.execute(_HIGHEST, (query, passage, grade, at))
        except UnicodeEncodeError as error:
            return _half_a_character(error, at)
        return None

    def judgements(self) -> Iterator[tuple[str, str, int, str]]:
        """The judgements in their order: query, passage, grade and place."""
        yield from self._file.execute("SELECT query, passage, grade, at FROM judged ORDER BY rowid")

    def rows(self) -> Iterator[Attempt]:
        """A row per judged query, numbered from 1; a judgement of what is not there is an error in its place."""
        groups = groupby(self._file.execute(_JOINED), itemgetter(0))
        for number, (_, judgements) in enumerate(groups, start=1):
            listed = list(judgements)
            yield from ((number, error) for line in listed if (error := _dangling(*line[1:])))
            _, query, _, _, at, text, _ = listed[0]
            there = [line for line in listed if line[6] is not None]
            if text is None or not there:
                continue
            by_side: dict[bool, dict[str, None]] = {True: {}, False: {}}
            for line in there:
                by_side[line[3] > 0][line[6]] = None
            if not by_side[True]:
                yield number, ValueError(f"{at}: query {query!r} has no positive; give a passage a grade above 0")
            else:
                yield number, {"query": text, "positives": list(by_side[True]), "negatives": list(by_side[False])}


def _half_a_character(error: UnicodeEncodeError, at: str) -> ValueError:
    return ValueError(f"{at}: {error.object[error.start]!r} is half a character; write it in UTF-8")


def _dangling(
    query: str, passage: str, grade: int, at: str, query_text: str | None, text: str | None
) -> ValueError | None:
    for kind, name, found in (("query", query, query_text), ("passage", passage, text)):
        if found is None:
            return ValueError(f"{at}: there is no {kind} {shortened(name)}; add it, or remove the judgement")
    return None
