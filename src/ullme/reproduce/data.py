"""The rows that every trained row of the tables learns from: read, cleared of test texts, cut, sampled, written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import TypeAdapter, ValidationError
from yaml import YAMLError

from ullme.apps.doc_pairs import DocPairs
from ullme.data import DataSource, load_pairs
from ullme.files import written
from ullme.reproduce.budgets import Budget
from ullme.reproduce.overlap import Overlap
from ullme.types import PairExample

DOCUMENTATION = "documentation"
_FILES = (".jsonl", ".jsonl.gz", ".parquet")
Rows = dict[str, list[PairExample]]


@dataclass(frozen=True)
class Prepared:
    """Training data on disk.

    Attributes:
        train: source -> file; a source of which nothing is left has none.
        held_out: file of the rows that are watched and not trained on; None if there are none.
        sources: by source: rows read, left out because a test holds them, held out, trained on; and the files' hashes.
        overlap: what training rows and tests share.
    """

    train: Mapping[str, Path]
    held_out: Path | None
    sources: dict[str, dict[str, Any]]
    overlap: Overlap


def sources_of(data: Path) -> list[DataSource]:
    """The sources of a folder (each file of pairs in it), of one file, or of a YAML list as in ``data.train``.

    Raises:
        ValueError: nothing of the kind is there, or a listed source has a weight or opts out of in-batch negatives.
    """
    if data.suffix in (".yaml", ".yml") and data.is_file():
        return _listed_sources(data)
    files = sorted(p for p in data.iterdir() if p.name.endswith(_FILES)) if data.is_dir() else [data]
    if not files:
        raise ValueError(f"data: folder {str(data)!r} has no {', '.join(_FILES)}; give a folder with files of pairs")
    return [DataSource(path=str(path), name=path.name.split(".")[0]) for path in files]


def _listed_sources(path: Path) -> list[DataSource]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
        sources = TypeAdapter(list[DataSource]).validate_python(content)
    except YAMLError as error:
        raise ValueError(f"data: {path}: is no YAML; write a list of sources, as data.train of a run file") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"data: {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; correct it") from None
    for at, source in enumerate(sources):
        _require_usable(source, f"data: {path}: {at}")
    return sources


def _require_usable(source: DataSource, where: str) -> None:
    """Refuse what a study's own files of rows would lose."""
    if not source.in_batch_negatives:
        raise ValueError(
            f"{where}.in_batch_negatives: is false, but a study takes a row's negatives from others of its source; "
            "leave the source out, or train on it with ullme train"
        )
    if source.weight is not None:
        raise ValueError(
            f"{where}.weight: a study takes as many rows of each source, rows_per_source=N at most; remove weight"
        )


def read_rows(data: Path | None, documentation: Callable[[], DocPairs]) -> Rows:
    """The rows of every source; without data those of the documentation on this machine.

    Raises:
        ValueError: the first thing that is wrong with them.
    """
    if data is None:
        return {DOCUMENTATION: documentation().train}
    return _read(sources_of(data))


def read_file(path: Path) -> list[PairExample]:
    """The rows of one file."""
    (rows,) = _read([DataSource(path=str(path))]).values()
    return rows


def _read(sources: Sequence[DataSource]) -> Rows:
    dataset = load_pairs(sources)
    parts = zip(dataset.sources, dataset.source_rows(), strict=True)
    return {name: dataset.__getitems__(list(rows)) for name, rows in parts}


def prepare(rows: Rows, overlap: Overlap, budget: Budget, folder: Path) -> Prepared:
    """Write the rows that are trained on and those that are held out; the same on every call.

    What a test holds is left out first: rows whose query or positive it judges, and negatives that it judges. Texts
    are cut at the budget's words, and a source's rows of one query are joined. Then they are drawn by the hash of that
    query: the first ones with negatives are held out, a share of each source, and of the others at most
    ``rows_per_source`` are kept.

    Raises:
        ValueError: nothing is left to train on.
    """
    clear = {name: [overlap.cleared(e) for e in read if not overlap.touches(e)] for name, read in rows.items()}
    clean = {name: sorted(_joined(_cut(e, budget.words) for e in left), key=_draw) for name, left in clear.items()}
    held_out: list[PairExample] = []
    for examples in clean.values():
        share = min(-(-budget.held_out // len(rows)), budget.held_out - len(held_out))
        held_out += _watched(examples, share, {e.query for e in held_out})
    queries = {e.query for e in held_out}  # of every source: they may share a query
    train: dict[str, Path] = {}
    sources: dict[str, dict[str, Any]] = {}
    for name, examples in clean.items():
        free = [e for e in examples if e.query not in queries]
        kept = free[: budget.rows_per_source]
        counts = {"rows": len(rows[name]), "in a test": len(rows[name]) - len(clear[name])}
        sources[name] = {
            **counts,
            "queries": len(examples),
            "held out": len(examples) - len(free),
            "trained on": len(kept),
        }
        if kept:
            file = re.sub(r"[^-.\w]", "_", f"{len(train)}-{name}.jsonl")
            train[name] = write_rows(kept, folder / file)
            sources[name]["sha256"] = file_hash(train[name])
    if not train:
        raise ValueError(f"data: no row of {', '.join(rows)} is left to train on; add pairs that no test holds")
    watched_file = write_rows(held_out, folder / "held_out.jsonl") if held_out else None
    return Prepared(train, watched_file, sources, overlap)


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


def digest(content: Mapping[str, Any]) -> str:
    """A short hash of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _watched(examples: Sequence[PairExample], count: int, taken: set[str]) -> list[PairExample]:
    """Rows to hold out, each of another query: at most a fifth of a source, with negatives and so something to rank."""
    distinct = {e.query: e for e in examples if e.negatives and e.query not in taken}
    return list(distinct.values())[: max(0, min(count, len(examples) // 5))]


def _draw(example: PairExample) -> tuple[bytes, str]:
    return hashlib.blake2b(example.query.encode(), digest_size=8).digest(), example.row_id


def _cut(example: PairExample, words: int) -> PairExample:
    """The row with its texts cut, without a teacher's scores, which were of the whole texts."""
    positives, negatives = (
        tuple(_start(text, words) for text in texts) for texts in (example.positives, example.negatives)
    )
    return replace(example, query=_start(example.query, words), positives=positives, negatives=negatives, scores=None)


def _joined(examples: Iterable[PairExample]) -> list[PairExample]:
    """One row per query, with the passages of all its rows, each once; what is positive in one is no negative."""
    rows: dict[tuple[str, str | None], list[PairExample]] = {}
    for example in examples:
        rows.setdefault((example.query, example.instruction), []).append(example)
    return [_join(same) for same in rows.values()]


def _join(rows: Sequence[PairExample]) -> PairExample:
    positives = dict.fromkeys(text for row in rows for text in row.positives)
    negatives = dict.fromkeys(text for row in rows for text in row.negatives if text not in positives)
    return replace(rows[0], positives=tuple(positives), negatives=tuple(negatives))


def _start(text: str, words: int) -> str:
    parts = text.split()
    return text if len(parts) <= words else " ".join(parts[:words])


def write_rows(examples: Iterable[PairExample], path: Path) -> Path:
    """Write rows as the JSON lines that ``load_pairs`` reads, all or none."""
    lines = []
    for e in examples:
        row: dict[str, Any] = {"query": e.query, "positives": e.positives, "negatives": e.negatives}
        if e.instruction:
            row["instruction"] = e.instruction
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return written(path, "".join(lines))
