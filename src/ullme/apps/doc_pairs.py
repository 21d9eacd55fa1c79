"""Retrieval data that every Python machine already has: the documentation of its own libraries.

A query is the first sentence of a function's documentation, its passage what the documentation says after that.
Sources are read with ``ast``; nothing is imported, downloaded or run.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from ullme.apps.doc_sources import PACKAGES, Documented, documented
from ullme.apps.doc_text import LEAST_PASSAGE_WORDS, pair_of
from ullme.types import PairExample

#: How many of a hundred subpackages are kept for testing, chosen by the hash of their names.
TEST_SHARE = 15


@dataclass(frozen=True)
class DocPair:
    """A query, its passage, and where they stand: ``scipy.stats._entropy.entropy`` in unit ``scipy.stats``."""

    name: str
    unit: str
    module: str
    query: str
    passage: str


@dataclass(frozen=True)
class DocPairs:
    """Training rows of some subpackages and a retrieval task over others.

    ``corpus`` and ``queries`` are id -> text, ``qrels`` is query id -> passage id -> 1; an id is the qualified name of
    what is documented. No subpackage gives both training rows and test passages, and no test passage
    nearly repeats a training passage.
    """

    train: list[PairExample]
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    packages: dict[str, int] = field(default_factory=dict)


def doc_pairs(
    packages: Sequence[str] = PACKAGES,
    *,
    max_train: int | None = None,
    max_queries: int = 300,
    max_corpus: int = 2000,
    negatives: int = 3,
    passage_words: int = 40,
    seed: int = 0,
) -> DocPairs:
    """Training pairs and a test task from the documentation of installed packages; the same on every call.

    Args:
        packages: top-level packages; ``stdlib`` is Python's own library. One that is not installed is passed over.
        max_train: training pairs at most.
        max_queries: test queries at most.
        max_corpus: test passages at most, those of the queries among them.
        negatives: hard negatives of a row: the nearest functions beside it in its module.
        passage_words: words of a passage at most (40 words are about 50 tokens).
        seed: another seed splits and samples otherwise.

    Raises:
        ValueError: no installed package gives enough documentation for a test.
    """
    if passage_words < LEAST_PASSAGE_WORDS:
        raise ValueError(f"passage_words: {passage_words} is too short to tell; give {LEAST_PASSAGE_WORDS} or more")
    with _no_garbage_collection():
        pairs = _distinct(_pairs(documented(packages), passage_words))
    is_test = {unit: _draw(unit, seed) % 100 < TEST_SHARE for unit in {p.unit for p in pairs}}
    kept = [p for p in pairs if not is_test[p.unit]]
    train = _sample(kept, max_train, seed)
    test = _sample(_unlike((p for p in pairs if is_test[p.unit]), kept), max_corpus, seed)
    if len(test) < 2 or not train:
        raise ValueError(f"packages: {', '.join(packages)} have too little documentation here; name larger ones")
    asked = _sample(test, max_queries, seed + 1)
    return DocPairs(
        train=_with_siblings(train, negatives),
        corpus={p.name: p.passage for p in test},
        queries={p.name: p.query for p in asked},
        qrels={p.name: {p.name: 1} for p in asked},
        packages=dict(Counter(p.unit.split(".")[0] for p in pairs)),
    )


def write_jsonl(pairs: Iterable[PairExample], path: Path) -> None:
    """Write training pairs as the JSON lines that ``load_pairs`` reads: query, positives, negatives."""
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
            row = {"query": pair.query, "positives": list(pair.positives), "negatives": list(pair.negatives)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Parsing makes millions of short-lived objects without cycles; collecting between them takes twice the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _pairs(found: Iterable[Documented], passage_words: int) -> Iterator[DocPair]:
    for thing in found:
        made = pair_of(thing.doc, thing.name.rsplit(".", 1)[-1], passage_words)
        if made is not None:
            yield DocPair(thing.name, thing.unit, thing.module, *made)


def _distinct(pairs: Iterable[DocPair]) -> list[DocPair]:
    """Pairs whose query and passage nothing else shares: of two alike, neither could be told to be the right one."""
    listed = list(pairs)
    queries = Counter(p.query.lower() for p in listed)
    passages = Counter(_start(p.passage) for p in listed)
    names = Counter(p.name for p in listed)
    return [
        p for p in listed if queries[p.query.lower()] == 1 and passages[_start(p.passage)] == 1 and names[p.name] == 1
    ]


def _unlike(test: Iterable[DocPair], train: Iterable[DocPair]) -> list[DocPair]:
    """Test pairs without those that a training passage nearly repeats, as NumPy's masked arrays repeat its arrays."""
    seen = {phrase for p in train for phrase in _phrases(p.passage)}
    return [p for p in test if len(seen & _phrases(p.passage)) <= 0.4 * len(_phrases(p.passage))]


def _phrases(passage: str) -> set[tuple[str, ...]]:
    words = passage.lower().split()
    return set(zip(*(words[i:] for i in range(5)), strict=False))


def _start(passage: str) -> str:
    """What two passages share when one is a copy of the other with a word changed further on."""
    return " ".join(passage.lower().split()[:12])


def _with_siblings(pairs: list[DocPair], count: int) -> list[PairExample]:
    """Pairs with the passages documented nearest to theirs in the same module as hard negatives."""
    rows = []
    for _, group in groupby(pairs, key=lambda p: p.module):
        siblings = list(group)
        for at, pair in enumerate(siblings):
            near = sorted((i for i in range(len(siblings)) if i != at), key=lambda i: (abs(i - at), i))[:count]
            rows.append(
                PairExample(
                    query=pair.query,
                    positives=(pair.passage,),
                    negatives=tuple(siblings[i].passage for i in near),
                    source=pair.unit,
                    row_id=pair.name,
                )
            )
    return rows


def _sample(pairs: Iterable[DocPair], at_most: int | None, seed: int) -> list[DocPair]:
    """At most so many pairs, drawn by the hash of their names, in their order."""
    listed = list(pairs)
    if at_most is None or len(listed) <= at_most:
        return listed
    drawn = set(sorted((p.name for p in listed), key=lambda name: _draw(name, seed))[:at_most])
    return [p for p in listed if p.name in drawn]


def _draw(name: str, seed: int) -> int:
    """A number that looks random and is the same everywhere."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "big")
