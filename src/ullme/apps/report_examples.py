"""Queries that a run improved and that it made worse: the rank of their positive before training and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ullme.apps.report_page import Example, Examples
from ullme.config import RunConfig
from ullme.data import PairDataset
from ullme.models import ULLME, ModelSettings
from ullme.models.settings import attentions_of
from ullme.templates import instruction_prompt
from ullme.types import Attention, PairExample

MAX_QUERIES = 300
TRAINED = "trained"  # the name of the trained model, beside "base, <attention>"


@dataclass(frozen=True)
class Question:
    """Queries with the passages among which their positives are looked for.

    Attributes:
        examples: the queries.
        passages: every text once.
        source: where they come from, in words.
    """

    examples: Sequence[PairExample]
    passages: Sequence[str]
    source: str

    @property
    def right(self) -> list[set[int]]:
        """Of each query the places of its positives among the passages."""
        place = {text: i for i, text in enumerate(self.passages)}
        return [{place[text] for text in example.positives} for example in self.examples]


@dataclass(frozen=True)
class Found:
    """What one model finds: the rank of the nearest positive of each query, and the passage found first."""

    name: str
    rank_Q: list[int]
    first_Q: list[int]

    @property
    def scores(self) -> dict[str, float]:
        """Means over the queries, in 0..1: the reciprocal rank, and how many are among the first one and ten."""
        rank_Q = np.array(self.rank_Q)
        means = {
            "MRR": (1 / rank_Q).mean(),
            "found first": (rank_Q == 1).mean(),
            "in the first 10": (rank_Q <= 10).mean(),
        }
        return {name: float(value) for name, value in means.items()}


@dataclass(frozen=True)
class Comparison:
    """The base model in the attention that finds more, and the trained one."""

    question: Question
    models: dict[str, Found]
    base: Found
    trained: Found

    def examples(self, count: int) -> list[Examples]:
        """The ``count`` queries whose positive rose by most places, and those where it fell by most."""
        moved = list(enumerate(zip(self.base.rank_Q, self.trained.rank_Q, strict=True)))
        up = sorted((m for m in moved if m[1][1] < m[1][0]), key=lambda m: (m[1][1] - m[1][0], m[1][1], m[0]))
        down = sorted((m for m in moved if m[1][1] > m[1][0]), key=lambda m: (m[1][0] - m[1][1], m[1][0], m[0]))
        same = len(moved) - len(up) - len(down)
        titles = {
            True: f"Improved: {len(up)} of {len(moved)} queries",
            False: f"Worse: {len(down)} of {len(moved)} queries; {same} as before",
        }
        chosen = {True: up[:count], False: down[:count]}
        names = (self.base.name, self.trained.name)
        return [Examples(titles[b], [self._example(i) for i, _ in chosen[b]], b, names) for b in (True, False)]

    def _example(self, query: int) -> Example:
        example, right = self.question.examples[query], self.question.right[query]
        first = (self.base.first_Q[query], self.trained.first_Q[query])
        passages = self.question.passages
        return Example(
            example.row_id,
            example.query,
            example.positives[0],
            (self.base.rank_Q[query], self.trained.rank_Q[query]),
            (passages[first[0]], passages[first[1]]),
            (first[0] in right, first[1] in right),
        )


def question_of(rows: PairDataset, corpus: Sequence[str] = ()) -> Question:
    """The first rows as queries; their passages are looked for among one another's, or in a corpus.

    Where there are more than ``MAX_QUERIES`` rows, such as lie evenly among them are taken.
    """
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), MAX_QUERIES)).round().astype(int).tolist()
    examples = [rows[i] for i in chosen]
    passages = [text for e in examples for text in (*e.positives, *e.negatives)]
    every = list(dict.fromkeys([*passages, *corpus]))
    part = f"{len(examples)} of {len(rows)} rows" if len(examples) < len(rows) else f"all {len(rows)} rows"
    return Question(examples, every, f"{part} of {', '.join(rows.sources)}")


def compare(config: RunConfig, model: Path, question: Question) -> Comparison:
    """Ask the LLM as it was before training, under each attention that its pooling allows, and the trained model.

    Raises:
        ValueError: a model cannot be loaded.
    """
    base = ULLME(**base_settings(config).to_dict())
    names = {attention: f"base, {attention}" for attention in attentions_of(config.model.pooling)}
    prompts, bf16 = config.model.prompts, config.trainer.bf16
    found = {n: ask(base, question, n, a, prompts, bf16) for a, n in names.items()}
    del base
    trained = ULLME.from_pretrained(model)
    after = ask(trained, question, TRAINED, None, prompts, bf16)
    best = max(found.values(), key=lambda f: f.scores["MRR"])
    return Comparison(question, {**found, after.name: after}, best, after)


def base_settings(config: RunConfig) -> ModelSettings:
    """The LLM before any training: none of the run's adapters, old or new."""
    return replace(config.model.settings(), merged_adapters=(), lora_name=None, adapter_path=None)


def ask(
    model: ULLME, question: Question, name: str, attention: Attention | None, prompts: Mapping[str, str], bf16: bool
) -> Found:
    """What a model finds for every query, by cosine; prompted as in training."""
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bf16):
        passage_PD = _vectors(model, question.passages, prompts.get("document", ""), attention)
        query_QD = np.empty((len(question.examples), passage_PD.shape[1]), dtype=np.float32)
        default = prompts.get("query", "")
        prompt_Q = [instruction_prompt(example.instruction) or default for example in question.examples]
        for prompt in dict.fromkeys(prompt_Q):
            rows = [i for i, own in enumerate(prompt_Q) if own == prompt]
            query_QD[rows] = _vectors(model, [question.examples[i].query for i in rows], prompt, attention)
    score_QP = query_QD @ passage_PD.T
    return Found(name, ranks(score_QP, question.right), score_QP.argmax(1).tolist())


def ranks(score_QP: np.ndarray, right: Sequence[set[int]]) -> list[int]:
    """The rank, from 1, of the nearest positive of each query, after other passages that score as high or higher."""
    found = []
    for score_P, places in zip(score_QP, right, strict=True):
        others_P = np.delete(score_P, list(places))
        found.append(1 + int((others_P >= score_P[list(places)].max()).sum()))
    return found


def _vectors(model: ULLME, texts: Sequence[str], prompt: str, attention: Attention | None) -> np.ndarray:
    options: dict[str, Any] = {"prompt": prompt, "attention": attention, "show_progress_bar": False}
    return np.asarray(model.encode(list(texts), normalize_embeddings=True, **options))
