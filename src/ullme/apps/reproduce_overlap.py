"""Texts that stand in the training rows and in a test: found, counted and taken out of training."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from mteb.abstasks import AbsTask
from mteb.abstasks.retrieval import AbsTaskRetrieval

from ullme.eval.tasks import parts_of
from ullme.types import PairExample

#: Shorter texts ("thank you") are the same by chance.
LEAST_WORDS = 4

#: What stands in a task's data and is no text.
_NO_TEXT = {"id", "_id", "label", "labels", "label_text", "lang", "relevant_docs", "top_ranked"}


@dataclass(frozen=True)
class Overlap:
    """What training rows and tests share.

    Attributes:
        shared: the texts, normalised.
        counts: task -> source -> how many of its queries and positives stand in the task's evaluated splits.
    """

    shared: frozenset[str] = frozenset()
    counts: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    def touches(self, example: PairExample) -> bool:
        """Whether the row's query or a positive stands in a test."""
        return any(normalised(text) in self.shared for text in (example.query, *example.positives))


def normalised(text: str) -> str:
    """A text by its words alone: case, punctuation and spaces do not tell two apart."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def find_overlap(sources: Mapping[str, Iterable[PairExample]], tests: Mapping[str, Iterable[str]]) -> Overlap:
    """Which queries and positives of the sources stand in the tests, as equal texts of ``LEAST_WORDS`` words or more.

    Only the training texts are held in memory, so a corpus of millions of passages can be a test. A passage that was
    cut or rephrased is not found.

    Args:
        sources: training rows by source.
        tests: texts by task.
    """
    places: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for source, examples in sources.items():
        for example in examples:
            places[normalised(example.query)].add((source, "queries"))
            for positive in example.positives:
                places[normalised(positive)].add((source, "positives"))
    shared: set[str] = set()
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for task, texts in tests.items():
        found = {text for text in map(normalised, texts) if text in places and len(text.split()) >= LEAST_WORDS}
        counted = Counter(place for text in found for place in places[text])
        for (source, role), count in sorted(counted.items()):
            counts.setdefault(task, {}).setdefault(source, {})[role] = count
        shared |= found
    return Overlap(frozenset(shared), counts)


def scored_texts(task: AbsTask) -> Iterator[str]:
    """Every text of the splits that a task is scored on: queries, passages, sentences. Loads the task's data."""
    for shared in parts_of(task):
        part = copy.copy(shared)  # whose data go when it does
        part.load_data()
        if isinstance(part, AbsTaskRetrieval):
            part.convert_v1_dataset_format_to_v2(num_proc=None)
        yield from _texts(part.dataset, set(part.eval_splits))


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
