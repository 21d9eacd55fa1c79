"""Texts that stand in the training rows and in a test: found, counted and taken out of training."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

from datasets import Dataset
from mteb.abstasks import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval

from ullme.eval.tasks import parts_of
from ullme.types import PairExample

#: Task -> source -> queries or positives -> how many.
Counts = dict[str, dict[str, dict[str, int]]]

#: Shorter texts ("thank you") are the same by chance.
LEAST_WORDS = 4

#: What stands in a task's data and is no text.
_NO_TEXT = {"id", "_id", "label", "labels", "label_text", "lang", "relevant_docs", "top_ranked"}


class TaskTexts(NamedTuple):
    """A task's texts: what is judged (queries, sentences), and the passages that retrieval searches."""

    task: str
    judged: Iterable[str]
    corpus: Iterable[str] = ()


@dataclass(frozen=True)
class Overlap:
    """What training rows and tests share.

    Attributes:
        shared: the judged texts, normalised.
        counts: task -> source -> how many of its queries and positives are judged in the task's evaluated splits.
        corpus_counts: the same with the passages that the task searches. It is no reason to leave a row out, since a
            passage says nothing of the test queries; but such a task is not scored zero-shot.
    """

    shared: frozenset[str] = frozenset()
    counts: Counts = field(default_factory=dict)
    corpus_counts: Counts = field(default_factory=dict)

    def touches(self, example: PairExample) -> bool:
        """Whether the row's query or a positive stands in a test."""
        return any(normalised(text) in self.shared for text in (example.query, *example.positives))


def normalised(text: str) -> str:
    """A text by its words alone: case, punctuation and spaces do not tell two apart."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def find_overlap(sources: Mapping[str, Iterable[PairExample]], tests: Iterable[TaskTexts]) -> Overlap:
    """Which queries and positives of the sources stand in the tests, as equal texts of ``LEAST_WORDS`` words or more.

    Only the training texts are held in memory, so a corpus of millions of passages can be a test. A text that was
    cut or rephrased is not found.
    """
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for source, examples in sources.items():
        for example in examples:
            places[normalised(example.query)].add((source, "queries"))
            for positive in example.positives:
                places[normalised(positive)].add((source, "positives"))
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
        part.load_data()
        if isinstance(part, AbsTaskRetrieval):
            part.convert_v1_dataset_format_to_v2(num_proc=None)
            splits = [by_split[s] for by_split in part.dataset.values() for s in part.eval_splits if s in by_split]
            corpora += [_passages(split["corpus"]) for split in splits]
            judged += [_texts(split["queries"], set()) for split in splits]
        else:
            judged.append(_texts(part.dataset, set(part.eval_splits)))
    return TaskTexts(task.metadata.name, chain.from_iterable(judged), chain.from_iterable(corpora))


def _passages(corpus: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """Each passage alone and after its title."""
    for row in corpus:
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
