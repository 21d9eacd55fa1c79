"""How much is trained and scored: named budgets, each with every number that it sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from omegaconf import OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from ullme.data.wording import hint
from ullme.models.settings import require_choice

#: Tasks of few tokens for which local folders are known to hold usable data; a task is ``name[:subset[:split]]``.
SHORT_TASKS = (
    *("STSBenchmark", "STS13", "BIOSSES", "Banking77Classification", "EmotionClassification"),
    *("AmazonCounterfactualClassification:en", "MTOPDomainClassification:en:validation"),
    *("MassiveScenarioClassification:en:test", "XQuADRetrieval:en", "TwentyNewsgroupsClustering.v2"),
)
ALL_TASKS = (
    *SHORT_TASKS,
    *("STS12", "STS14", "TweetSentimentExtractionClassification", "MLQuestions", "SciFact"),
    "SummEvalSummarization.v2",
)

#: Rows that get every seed of a budget also where the others get fewer.
MORE_SEEDS = ("bi_cl", "grl")


def _listed(value: object) -> object:
    return [value] if isinstance(value, str | int) else value


class Budget(BaseModel):
    """Every number that a budget sets.

    Attributes:
        steps: optimiser steps of each trained row.
        mntp_steps: steps of LLM2Vec's first stage, which come before.
        batch_size: queries per step.
        negatives: hard negatives of a query in one step at most, drawn from those that it has.
        mined: hard negatives that are mined for each query; 0 leaves rows the negatives that they bring.
        margin: a mined negative's cosine is at most the positive's less this share of it.
        miner_steps: steps of contrastive training, with in-batch negatives alone, of the LLM that mines; 0 takes a bag
            of words in its place.
        words: words of a training text at most.
        max_length: tokens of a text at most, in training and in scoring; Echo, which reads it twice, has double.
        chunk_tokens: tokens that have a graph at once.
        rows_per_source: training rows of one source at most, drawn by the hash of their query.
        held_out: rows that are not trained on, to watch losses and rank agreement.
        evaluations: how often they are looked at.
        seeds: seeds of training.
        other_seeds: how many of these the rows outside ``MORE_SEEDS`` get; null gives them all.
        tasks: MTEB tasks; of local folders those that are there, unless tasks are asked for by name.
        benchmark: MTEB benchmark that is scored where a hub is asked and no task is named.
        queries, passages: size of the documentation task that stands in where no other is asked for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: PositiveInt
    mntp_steps: PositiveInt
    batch_size: PositiveInt = Field(ge=2)
    negatives: NonNegativeInt = 2
    mined: NonNegativeInt = 8
    margin: float = Field(default=0.05, ge=0, lt=1)
    miner_steps: NonNegativeInt = 0
    words: PositiveInt = 200
    max_length: PositiveInt = 512
    chunk_tokens: PositiveInt = 8192
    rows_per_source: PositiveInt = 20_000
    held_out: NonNegativeInt = 128
    evaluations: PositiveInt = 5
    seeds: Annotated[tuple[NonNegativeInt, ...], BeforeValidator(_listed), Field(min_length=1)] = (0,)
    other_seeds: PositiveInt | None = None
    tasks: Annotated[tuple[str, ...], BeforeValidator(_listed)] = SHORT_TASKS
    benchmark: str | None = None
    queries: PositiveInt = 200
    passages: PositiveInt = 600

    def seeds_of(self, row: str) -> tuple[int, ...]:
        """The seeds of a trained row."""
        return self.seeds if row in MORE_SEEDS else self.seeds[: self.other_seeds]


#: ``smoke`` ends in minutes on two cores and says nothing about the ordering. ``small`` is about half an hour per row
#: and seed on two cores, ``hour`` the whole table in about an hour on one GPU, ``gpu`` the full study on one GPU, and
#: ``paper`` the paper's scale: its benchmark, for pairs (MS MARCO in the paper) that ``--data`` names.
BUDGETS: dict[str, Budget] = {
    "smoke": Budget(
        steps=4,
        mntp_steps=2,
        batch_size=8,
        words=24,
        max_length=64,
        rows_per_source=200,
        held_out=8,
        evaluations=2,
        seeds=(0, 1),
        other_seeds=1,
        tasks=("BIOSSES", "XQuADRetrieval:en"),
        queries=30,
        passages=90,
    ),
    "small": Budget(
        steps=150,
        mntp_steps=50,
        batch_size=32,
        words=24,
        rows_per_source=700,
        held_out=64,
        seeds=(0, 1),
        other_seeds=1,
    ),
    "hour": Budget(steps=150, mntp_steps=50, batch_size=64, negatives=4, miner_steps=50, words=100, seeds=(0,)),
    "gpu": Budget(
        steps=500, mntp_steps=200, batch_size=128, negatives=8, miner_steps=100, seeds=(0, 1, 2), tasks=ALL_TASKS
    ),
    "paper": Budget(
        steps=1000,
        mntp_steps=1000,
        batch_size=512,
        negatives=8,
        miner_steps=200,
        words=400,
        rows_per_source=1_000_000,
        seeds=(0, 1, 2),
        tasks=(),
        benchmark="MTEB(eng, v1)",
    ),
}


def budget_of(name: str, overrides: Sequence[str] = ()) -> Budget:
    """A named budget, changed by ``key=value``.

    Raises:
        ValueError: an unknown name, key or value.
    """
    require_choice("budget", name, BUDGETS)
    values = BUDGETS[name].model_dump()
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or key not in values:
            cure = hint(key, values) or f"; choose from {', '.join(values)}, or a run file's section.key"
            raise ValueError(f"override {override!r}: no key of a budget{cure}")
        values[key] = OmegaConf.to_container(OmegaConf.from_dotlist([override]))[key]  # type: ignore[index, call-overload]
    try:
        return Budget.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"budget {name!r}: {first['loc'][0]}: {first['input']!r}: {first['msg']}; correct it"
        ) from None
