"""Texts that stand in the training rows and in a test: found, counted, and taken out where the test judges them."""

from __future__ import annotations

import copy
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

from datasets import Dataset
from mteb.abstasks import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval

from ullme.eval.local import cache_of, local_revision
from ullme.eval.tasks import parts_of
from ullme.types import PairExample

#: Task -> source -> queries, positives or negatives -> how many.
Counts = dict[str, dict[str, dict[str, int]]]

_NO_WORD = re.compile(r"[\W_]+")

#: Shorter texts ("thank you") are the same by chance.
LEAST_WORDS = 4

_ROLES: Mapping[str, Callable[[PairExample], Sequence[str]]] = {
    "queries": lambda example: (example.query,),
    "positives": lambda example: example.positives,
    "negatives": lambda example: example.negatives,
}

#: What stands in a task's data and is no text.
_NO_TEXT = {"id", "_id", "label", "labels", "label_text", "lang", "relevant_docs", "top_ranked"}


class TaskTexts(NamedTuple):
    """A task's texts: what is judged (sentences, queries, passages that answer one), and other passages searched."""

    task: str
    judged: Iterable[str]
    corpus: Iterable[str] = ()


@dataclass(frozen=True)
class Overlap:
    """What training rows and tests share.

    Attributes:
        shared: the judged texts, normalised.
        counts: task -> source -> how many of its queries, positives and negatives are judged in the task's evaluated
            splits.
        corpus_counts: the same with the passages that the task searches and that answer none of its queries. They say
            nothing of the queries and so leave no row out; but such a task is not scored zero-shot.
    """

    shared: frozenset[str] = frozenset()
    counts: Counts = field(default_factory=dict)
    corpus_counts: Counts = field(default_factory=dict)

    def touches(self, example: PairExample) -> bool:
        """Whether a test judges the row's query or a positive."""
        return any(normalised(text) in self.shared for text in (example.query, *example.positives))

    def cleared(self, example: PairExample) -> PairExample:
        """The row without negatives that a test judges."""
        kept = tuple(text for text in example.negatives if normalised(text) not in self.shared)
        return example if len(kept) == len(example.negatives) else replace(example, negatives=kept, scores=None)


def normalised(text: str) -> str:
    """A text by its words alone: case, punctuation and spaces do not tell two apart."""
    return _NO_WORD.sub(" ", text.casefold()).strip()


def find_overlap(sources: Mapping[str, Iterable[PairExample]], tests: Iterable[TaskTexts]) -> Overlap:
    """Which texts of the sources stand in the tests, as equal texts of ``LEAST_WORDS`` words or more.

    Only the training texts are held in memory, so a corpus of millions of passages can be a test. A text that was
    cut or rephrased is not found.
    """
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for source, examples in sources.items():
        for example in examples:
            for role, texts_in in _ROLES.items():
                for text in texts_in(example):
                    places[normalised(text)].add((source, role))
    shared: set[str] = set()
    counts: Counts = {}
    corpus_counts: Counts = {}
    for task, judged, corpus in tests:
        for texts, counted in ((judged, counts), (corpus, corpus_counts)):
            found = {t for t in map(normalised, texts) if t in places and len(t.split()) >= LEAST_WORDS}
            shared |= found if counted is counts else set()
            for (source, role), count in sorted(Counter(place for text in found for place in places[text]).items()):
                counted.setdefault(task, {}).setdefault(source, {})[role] = count
    return Overlap(frozenset(shared), counts, corpus_counts)


def texts_of(task: AbsTask) -> TaskTexts:
    """Every text of the splits that a task is scored on. Loads the task's data."""
    judged: list[Iterable[str]] = []
    corpora: list[Iterable[str]] = []
    for shared in parts_of(task):
        part = copy.copy(shared)  # whose data go when it does
        with cache_of(local_revision(part)):
            part.load_data()
        if isinstance(part, AbsTaskRetrieval):
            part.convert_v1_dataset_format_to_v2(num_proc=None)
            splits = [by_split[s] for by_split in part.dataset.values() for s in part.eval_splits if s in by_split]
            for split in splits:
                answers = {p for grades in split["relevant_docs"].values() for p, grade in grades.items() if grade > 0}
                judged += [_texts(split["queries"], set()), _passages(split["corpus"], answers, inside=True)]
                corpora.append(_passages(split["corpus"], answers, inside=False))
        else:
            judged.append(_texts(part.dataset, set(part.eval_splits)))
    return TaskTexts(task.metadata.name, chain.from_iterable(judged), chain.from_iterable(corpora))


def _passages(corpus: Iterable[Mapping[str, str]], ids: Set[str], inside: bool) -> Iterator[str]:
    """Each passage whose id is among these, or is not, alone and after its title."""
    for row in corpus:
        if (row["id"] in ids) is inside:
            yield row["text"]
            if row.get("title"):
                yield f"{row['title']} {row['text']}"


def _texts(value: Any, splits: set[str]) -> Iterator[str]:
    """The strings inside a task's data; where something is by split, those of the evaluated ones."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Dataset):
        for name in set(value.column_names) - _NO_TEXT:
            yield from _texts(list(value[name]), splits)
    elif isinstance(value, Mapping):
        for key in [k for k in value if k in splits] or [k for k in value if k not in _NO_TEXT]:
            yield from _texts(value[key], splits)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, splits)
