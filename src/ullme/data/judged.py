"""Retrieval collections as pairs: passages, queries and judgements in files that name each other by ids.

A BEIR folder (Thakur et al. 2021) has ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``; JSONL may be gzipped
or Parquet, and lie in a folder ``corpus/`` or ``queries/`` as on the hub. MS MARCO's (Bajaj et al. 2016) has
``collection.tsv``, ``queries.SPLIT.tsv``, ``qrels.SPLIT.tsv`` and ``qidpidtriples.SPLIT*.tsv``, one of the last two at
least. A ``.tsv`` file by itself has a query, a positive and a negative text in each line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import nan
from pathlib import Path
from typing import Any

from ullme.data.joins import Joins
from ullme.data.readers import SUFFIXES, Attempt, format_of, jsonl_attempts, lines_of, reader_of
from ullme.data.rows import titled
from ullme.data.wording import hint, shortened

#: The first line of a BEIR file of judgements.
QRELS_HEADER = ("query-id", "corpus-id", "score")
_TSV = (".tsv", ".tsv.gz")
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


def is_beir(path: str) -> bool:
    """Whether this is a BEIR folder: a corpus, queries and judgements."""
    return all(part_files(Path(path), part) for part in ("corpus", "queries")) and bool(beir_splits(Path(path)))


def is_msmarco(path: str) -> bool:
    """Whether this is a folder of MS MARCO's, or a file of text triples."""
    place = Path(path)
    if place.is_dir():
        return any((place / f"collection{suffix}").is_file() for suffix in _TSV)
    return path.lower().endswith(_TSV) and place.is_file()


def beir_rows(path: str, subset: str | None = None, split: str | None = None) -> Iterator[Attempt]:
    """The judged queries of a BEIR folder as rows (``Parts.rows``); ``split`` names the judgements, default ``train``.

    Raises:
        ValueError: a part is missing.
    """
    return beir_parts(path, split or "train").rows()


def beir_parts(path: str, split: str) -> Parts:
    """The parts of a BEIR folder, with the judgements of one split.

    Raises:
        ValueError: one is missing.
    """
    folder, files = Path(path), {part: part_files(Path(path), part) for part in ("corpus", "queries")}
    for part, found in files.items():
        if not found:
            raise ValueError(f"{path}: no {part}.jsonl; give a BEIR folder: corpus.jsonl, queries.jsonl, qrels/")
    splits = beir_splits(folder)
    if split not in splits:
        have = ", ".join(map(repr, splits)) or "none"
        raise ValueError(f"{path}: split: no qrels/{split}.tsv; it has {have}; set split{hint(split, splits)}")
    return Parts(
        lambda: chain.from_iterable(_texts(path, blank=True) for path in files["corpus"]),
        lambda: chain.from_iterable(map(_texts, files["queries"])),
        lambda: _beir_judgements(splits[split]),
        lambda: iter(()),
    )


def msmarco_rows(path: str, subset: str | None = None, split: str | None = None) -> Iterator[Attempt]:
    """The rows of MS MARCO's files: of a folder its judged queries (``Parts.rows``), of a file its triples of texts.

    ``split`` names the files of a folder, default ``train``.

    Raises:
        ValueError: a part is missing.
    """
    return msmarco_parts(path, split or "train").rows() if Path(path).is_dir() else _triples(path)


def msmarco_parts(path: str, split: str) -> Parts:
    """The parts of a folder of MS MARCO's, with the queries and judgements of one split.

    Raises:
        ValueError: one is missing.
    """
    folder = Path(path)
    one = {name: _tsv(folder, f"{name}.{split}") for name in ("queries", "qrels")} | {
        "coll": _tsv(folder, "collection")
    }
    listed = _listed_triples(folder, split)
    for missing, there in (("collection", one["coll"]), (f"queries.{split}", one["queries"])):
        if not there:
            raise ValueError(f"{folder}: no {missing}.tsv; add it, or set split to the one that is there")
    if not one["qrels"] and not listed:
        raise ValueError(f"{folder}: no qrels.{split}.tsv; add it, or qidpidtriples.{split}.tsv")
    return Parts(
        lambda: chain.from_iterable(_tsv_texts(path) for path in one["coll"]),
        lambda: chain.from_iterable(_tsv_texts(path) for path in one["queries"]),
        lambda: chain.from_iterable(_trec_judgements(path) for path in one["qrels"]),
        lambda: chain.from_iterable(map(_id_triples, listed)),
    )


def msmarco_splits(folder: Path) -> tuple[str, ...]:
    """The splits of a folder of MS MARCO's that have queries and judgements."""
    files = (path.name for path in folder.glob("queries.*") if path.name.endswith(_TSV))
    named = {name.removeprefix("queries.").removesuffix(".gz").removesuffix(".tsv") for name in files}
    return tuple(s for s in sorted(named - {""}) if _tsv(folder, f"qrels.{s}") or _listed_triples(folder, s))


def _listed_triples(folder: Path, split: str) -> list[Path]:
    return sorted(p for p in folder.glob(f"qidpidtriples.{split}*") if p.name.endswith(_TSV))


def part_files(folder: Path, part: str) -> list[Path]:
    """The file of a part, or the files in its folder."""
    beside = [folder / f"{part}{suffix}" for suffix in SUFFIXES]
    found = [path for path in beside if path.is_file()][:1]
    return found or sorted(p for p in folder.glob(f"{part}/*") if p.name.lower().endswith(tuple(SUFFIXES)))


def beir_splits(folder: Path) -> dict[str, Path]:
    """The files of a BEIR folder's judgements, by split."""
    known = (*_TSV, *SUFFIXES)
    found = sorted(p for p in folder.glob("qrels/*") if p.name.lower().endswith(known))
    return {path.name.split(".")[0]: path for path in found}


def _tsv(folder: Path, name: str) -> list[Path]:
    return [path for suffix in _TSV if (path := folder / f"{name}{suffix}").is_file()][:1]


def _attempts(path: Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """The rows of a JSONL or Parquet file, each with its place."""
    jsonl = format_of(str(path)) == "jsonl"
    rows: Iterator[Attempt] = jsonl_attempts(str(path)) if jsonl else reader_of("parquet")(str(path))
    for number, row in rows:
        yield f"{path}, {'line' if jsonl else 'row'} {number}", row


def _texts(path: Path, blank: bool = False) -> Part:
    """The ids, titles and texts of a BEIR corpus, or of its queries.

    With ``blank`` a text may be empty: known collections have such passages (Cranfield's 471), which may be searched.
    """
    for at, row in _attempts(path):
        if isinstance(row, ValueError):
            yield at, row
            continue
        name = "_id" if "_id" in row else "id"
        key, title, text = row.get(name), row.get("title"), row.get("text")
        whole = titled(title, text)
        if isinstance(key, bool) or not isinstance(key, str | int) or key == "":
            yield at, ValueError(f"{at}: {name}: {shortened(key)} is no id; write a string in quotes")
        elif not isinstance(whole, str) or not (blank or whole.strip()):
            yield at, ValueError(f"{at}: text: {shortened(text)} is no text; fill it in or remove the row")
        else:
            yield at, (str(key), title if isinstance(title, str) else "", text)


def _beir_judgements(path: Path) -> Part:
    if not path.name.lower().endswith(_TSV):
        for at, row in _attempts(path):
            yield at, row if isinstance(row, ValueError) else _judgement([row.get(name) for name in QRELS_HEADER], at)
        return
    for at, fields in _fields(path, len(QRELS_HEADER)):
        if isinstance(fields, ValueError) or tuple(fields) != QRELS_HEADER:
            yield at, fields if isinstance(fields, ValueError) else _judgement(fields, at)


def _judgement(fields: list[Any], at: str) -> tuple[str, str, int] | ValueError:
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


def _trec_judgements(path: Path) -> Part:
    for at, fields in _fields(path, 4):
        yield at, fields if isinstance(fields, ValueError) else _judgement([fields[0], *fields[2:]], at)


def _id_triples(path: Path) -> Part:
    for at, fields in _fields(path, 3):
        if isinstance(fields, ValueError):
            yield at, fields
        else:
            yield at, _judgement([fields[0], fields[1], 1], at)
            yield at, _judgement([fields[0], fields[2], 0], at)


def _tsv_texts(path: Path) -> Part:
    for at, fields in _fields(path, 2):
        blank = not isinstance(fields, ValueError) and not all(field.strip() for field in fields)
        error = ValueError(f"{at}: an empty id or text in {shortened(fields)}; fill it in or remove the line")
        yield at, error if blank else fields if isinstance(fields, ValueError) else (fields[0], "", fields[1])


def _triples(path: str) -> Iterator[Attempt]:
    for number, (_, fields) in enumerate(_fields(Path(path), 3, blank=True), start=1):
        if isinstance(fields, ValueError):
            yield number, fields
        elif fields:
            yield number, dict(zip(("query", "positive", "negative"), fields, strict=True))


def _fields(path: Path, count: int, blank: bool = False) -> Iterator[tuple[str, list[str] | ValueError]]:
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
