"""BEIR folders (Thakur et al. 2021): ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/SPLIT.tsv``.

JSONL may be gzipped or Parquet, and lie in a folder ``corpus/`` or ``queries/`` as on the hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from ullme.data.judged import TSV, Part, Parts, judgement, tab_separated
from ullme.data.readers import SUFFIXES, Attempt, format_of, jsonl_attempts, reader_of
from ullme.data.rows import titled
from ullme.data.wording import hint, shortened

#: The first line of a file of judgements.
QRELS_HEADER = ("query-id", "corpus-id", "score")


def is_beir(path: str) -> bool:
    """Whether this is a BEIR folder: a corpus, queries and judgements."""
    return all(part_files(Path(path), part) for part in ("corpus", "queries")) and bool(beir_splits(Path(path)))


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
        lambda: _judgements(splits[split]),
        lambda: iter(()),
    )


def beir_splits(folder: Path) -> dict[str, Path]:
    """The files of a BEIR folder's judgements, by split."""
    known = (*TSV, *SUFFIXES)
    found = sorted(p for p in folder.glob("qrels/*") if p.name.lower().endswith(known))
    return {path.name.split(".")[0]: path for path in found}


def part_files(folder: Path, part: str) -> list[Path]:
    """The file of a part, or the files in its folder."""
    beside = [folder / f"{part}{suffix}" for suffix in SUFFIXES]
    found = [path for path in beside if path.is_file()][:1]
    return found or sorted(p for p in folder.glob(f"{part}/*") if p.name.lower().endswith(tuple(SUFFIXES)))


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


def _judgements(path: Path) -> Part:
    if not path.name.lower().endswith(TSV):
        for at, row in _attempts(path):
            yield at, row if isinstance(row, ValueError) else judgement([row.get(name) for name in QRELS_HEADER], at)
        return
    for at, fields in tab_separated(path, len(QRELS_HEADER)):
        if isinstance(fields, ValueError) or tuple(fields) != QRELS_HEADER:
            yield at, fields if isinstance(fields, ValueError) else judgement(fields, at)
