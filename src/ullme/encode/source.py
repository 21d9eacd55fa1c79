"""Where texts come from: a file, a folder of files or a BEIR folder, as a stream of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ullme.data.beir import part_files
from ullme.data.readers import SUFFIXES, Reader, format_of, reader_of
from ullme.data.rows import titled
from ullme.data.wording import hint, shortened

#: Columns that may hold a row's text or its id, unless the user names others.
TEXT_COLUMNS = ("text", "passage", "sentence", "query", "contents")
ID_COLUMNS = ("id", "_id", "docid")
#: The files of a BEIR folder (Thakur et al. 2021), without their suffix.
PARTS = ("corpus", "queries")
#: The format of a text file, whose lines are rows.
LINES = "lines"


class TextRow(NamedTuple):
    """One text: where it stands (for messages), its id and itself."""

    at: str
    id: str
    text: str


@dataclass(frozen=True)
class TextSource:
    """Texts, one per row: ``.txt`` (a line is a text), JSONL (also gzipped), Parquet, or a folder.

    A folder is a BEIR folder (``corpus.jsonl``, ``queries.jsonl``; or Parquet, or folders ``corpus/``, ``queries/``, as
    ``ullme.data`` reads them), a dataset that ``datasets`` saved, or files of one format, which are read one after the
    other by name.

    Attributes:
        path: the file or folder.
        column: the column that holds the text; None takes the first of ``TEXT_COLUMNS`` that is there.
        id_column: the column that holds the row's id; None takes one of ``ID_COLUMNS``, else the row's number.
        title_column: the column put before the text, with a blank between; None takes ``title`` of a BEIR folder.
        part: which part of a BEIR folder.
    """

    path: Path
    column: str | None = None
    id_column: str | None = None
    title_column: str | None = None
    part: str = "corpus"

    def __post_init__(self) -> None:
        """Refuse a part that BEIR folders do not have."""
        if self.part not in PARTS:
            raise ValueError(f"part: {self.part!r} is unknown; choose from {', '.join(PARTS)}{hint(self.part, PARTS)}")

    def rows(self) -> Iterator[TextRow]:
        """Every text with its id, in the order of the source.

        Raises:
            ValueError: no such source, a broken row, a missing column, an empty text or a wrong type, by file and row.
        """
        number = 0
        for path, read in self._readers():
            columns = None
            for place, row in read(str(path)):
                number += 1
                at = f"{path}, row {place}"
                if columns is None:
                    columns = self._columns(row, at)
                yield columns.read(row, at, number)
        if number == 0:
            raise ValueError(f"{self.path}: no texts; write one per row")

    def _readers(self) -> list[tuple[Path, Reader]]:
        if self.path.is_dir():
            return [(path, text_reader(path)) for path in self._files()]
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file or folder; check the path")
        return [(self.path, text_reader(self.path))]

    def _files(self) -> list[Path]:
        beir = _beir_files(self.path)
        if beir:
            if self.part not in beir:
                raise ValueError(f"{self.path}: no {self.part}.jsonl; it has {', '.join(beir)}: name one as part")
            return beir[self.part]
        if self.part != PARTS[0]:
            raise ValueError(f"{self.path}: no {self.part}.jsonl; give a BEIR folder, or leave out part")
        if (self.path / "state.json").is_file():
            return [self.path]
        if (self.path / "dataset_dict.json").is_file():
            return [self._only_split(self.path / "dataset_dict.json")]
        found = sorted(path for path in self.path.iterdir() if path.is_file() and _suffix(path))
        if not found:
            raise ValueError(f"{self.path}: no texts in this folder; give files ending in .txt, {', '.join(SUFFIXES)}")
        kinds = {SUFFIXES.get(_suffix(path), LINES): path for path in found}
        if len(kinds) > 1:
            names = " and ".join(path.name for path in kinds.values())
            raise ValueError(f"{self.path}: files of several formats ({names}); put each into a folder of its own")
        return found

    def _only_split(self, listed: Path) -> Path:
        splits = json.loads(listed.read_text(encoding="utf-8"))["splits"]
        if len(splits) != 1:
            folders = ", ".join(str(self.path / split) for split in splits)
            raise ValueError(f"{self.path}: holds several splits; give the folder of one: {folders}")
        return self.path / splits[0]

    def _columns(self, row: dict[str, Any], at: str) -> _Columns:
        title = _column(row, self.title_column, (), f"{at}: title") if self.title_column else None
        if title is None and _beir_files(self.path):
            title = "title"  # which only some of its rows may have
        ids = [name for name in ID_COLUMNS if name in row]
        return _Columns(
            text=_column(row, self.column, TEXT_COLUMNS, f"{at}: text"),
            id=_column(row, self.id_column, (), f"{at}: id") if self.id_column else (ids[0] if ids else None),
            title=title,
        )


@dataclass(frozen=True)
class _Columns:
    """Which columns of a file say what, by its first row; every further row has to have them."""

    text: str
    id: str | None
    title: str | None

    def read(self, row: dict[str, Any], at: str, number: int) -> TextRow:
        text = _required(row, self.text, at)
        if not isinstance(text, str):
            raise ValueError(f"{at}: {self.text}: {shortened(text)} is no text; fill it in or remove the row")
        whole = text
        if self.title is not None:
            title = row.get(self.title) or ""
            if not isinstance(title, str):
                raise ValueError(f"{at}: {self.title}: {shortened(title)} is no text; fill it in or leave it out")
            whole = titled(title, text)
        if not whole.strip():
            raise ValueError(f"{at}: {self.text}: {shortened(text)} is no text; fill it in or remove the row")
        return TextRow(at, str(number) if self.id is None else _id(_required(row, self.id, at), self.id, at), whole)


def _id(value: Any, column: str, at: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"{at}: {column}: {shortened(value)} is no id; write a string or a whole number")
    return str(value)


def _required(row: dict[str, Any], column: str, at: str) -> Any:
    if column not in row:
        have = ", ".join(map(repr, row))
        raise ValueError(f"{at}: no column {column!r}, which the file's first row has; it has {have}; add it")
    return row[column]


def _column(row: dict[str, Any], named: str | None, usual: tuple[str, ...], at: str) -> str:
    have = ", ".join(map(repr, row))
    found = [name for name in ((named,) if named is not None else usual) if name in row]
    if not found:
        asked = repr(named) if named is not None else " or ".join(map(repr, usual))
        raise ValueError(f"{at}: no column {asked}; it has {have}; name one of them")
    return found[0]


def _beir_files(folder: Path) -> dict[str, list[Path]]:
    """The parts of a BEIR folder that are there, each with its files as training reads them; none of a file."""
    found = {part: part_files(folder, part) for part in PARTS}
    return {part: paths for part, paths in found.items() if paths}


def _suffix(path: Path) -> str:
    return next((suffix for suffix in (".txt", *SUFFIXES) if path.name.lower().endswith(suffix)), "")


def text_format(path: Path) -> str:
    """The format of a file of texts, or of a dataset's folder: ``LINES``, or one of ``READERS``.

    Raises:
        ValueError: the file's name tells none.
    """
    suffix = _suffix(path)
    if not suffix and path.is_file():
        raise ValueError(f"{path}: its name tells no format; end it in .txt, {', '.join(SUFFIXES)}")
    return LINES if suffix == ".txt" else format_of(str(path))


def text_reader(path: Path) -> Reader:
    """What reads a file of texts, or a dataset's folder, as rows.

    Raises:
        ValueError: as ``text_format``.
    """
    kind = text_format(path)
    return _lines if kind == LINES else reader_of(kind)


def _lines(path: str, subset: str | None = None, split: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a text file as rows, numbered from 1."""
    with open(path, encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, {"text": line.rstrip("\n")}
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8") from error
