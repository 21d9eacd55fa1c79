"""MS MARCO's files (Bajaj et al. 2016), a folder of them or one of text triples.

A folder has ``collection.tsv``, ``queries.SPLIT.tsv``, ``qrels.SPLIT.tsv`` and ``qidpidtriples.SPLIT*.tsv``, one of the
last two at least. A ``.tsv`` file by itself has a query, a positive and a negative text in each line.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ullme.data.judged import TSV, Part, Parts, judgement, tab_separated
from ullme.data.readers import Attempt
from ullme.data.wording import shortened


def is_msmarco(path: str) -> bool:
    """Whether this is a folder of MS MARCO's, or a file of text triples."""
    place = Path(path)
    if place.is_dir():
        return any((place / f"collection{suffix}").is_file() for suffix in TSV)
    return path.lower().endswith(TSV) and place.is_file()


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
    files = (path.name for path in folder.glob("queries.*") if path.name.endswith(TSV))
    named = {name.removeprefix("queries.").removesuffix(".gz").removesuffix(".tsv") for name in files}
    return tuple(s for s in sorted(named - {""}) if _tsv(folder, f"qrels.{s}") or _listed_triples(folder, s))


def _listed_triples(folder: Path, split: str) -> list[Path]:
    return sorted(p for p in folder.glob(f"qidpidtriples.{split}*") if p.name.endswith(TSV))


def _tsv(folder: Path, name: str) -> list[Path]:
    return [path for suffix in TSV if (path := folder / f"{name}{suffix}").is_file()][:1]


def _tsv_texts(path: Path) -> Part:
    for at, fields in tab_separated(path, 2):
        blank = not isinstance(fields, ValueError) and not all(field.strip() for field in fields)
        error = ValueError(f"{at}: an empty id or text in {shortened(fields)}; fill it in or remove the line")
        yield at, error if blank else fields if isinstance(fields, ValueError) else (fields[0], "", fields[1])


def _trec_judgements(path: Path) -> Part:
    for at, fields in tab_separated(path, 4):
        yield at, fields if isinstance(fields, ValueError) else judgement([fields[0], *fields[2:]], at)


def _id_triples(path: Path) -> Part:
    for at, fields in tab_separated(path, 3):
        if isinstance(fields, ValueError):
            yield at, fields
        else:
            yield at, judgement([fields[0], fields[1], 1], at)
            yield at, judgement([fields[0], fields[2], 0], at)


def _triples(path: str) -> Iterator[Attempt]:
    for number, (_, fields) in enumerate(tab_separated(Path(path), 3, blank=True), start=1):
        if isinstance(fields, ValueError):
            yield number, fields
        elif fields:
            yield number, dict(zip(("query", "positive", "negative"), fields, strict=True))
