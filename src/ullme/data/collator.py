"""Pairs to a tokenised batch, through the same tokenizer that encoding and evaluation use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ullme.data.schema import text_key
from ullme.prompts import TextTokenizer, instruction_prompt
from ullme.types import Batch, PairExample, Texts

Choice = Literal["first", "sampled"]

#: The key of an absent passage; keys of texts are never negative.
ABSENT = -1


class PairCollator:
    """Turns B pairs into one ``Batch``.

    A query's P passages are ``positives_per_query`` positives, then its hard negatives; what a row lacks is absent
    (length 0, mask False, key ``ABSENT``). With ``negatives_per_query`` given, P is the same for every batch and rank;
    with None it is that of the batch's richest row. An instruction stands before its query only.

    Which of several passages a row brings depends on nothing but ``(seed, epoch, row_id)``: its ``first`` ones, or
    ones ``sampled`` anew each epoch (``set_epoch``).

    Attributes:
        text_tokenizer: the one way from text to ids.
        negatives_per_query: hard negatives of a query at most; None takes all, 0 none.
        positives_per_query: positives of a query at most.
        generation: also tokenise each passage after its query, for likelihoods.
        passage_prompt: prompt before every passage to be embedded.
        choice: ``first`` or ``sampled``.
    """

    def __init__(
        self,
        text_tokenizer: TextTokenizer,
        negatives_per_query: int | None = None,
        positives_per_query: int = 1,
        *,
        generation: bool = False,
        passage_prompt: str = "",
        choice: Choice = "first",
        seed: int = 0,
    ) -> None:
        if negatives_per_query is not None and negatives_per_query < 0:
            raise ValueError(f"negatives_per_query: {negatives_per_query} is negative; give 0 or more, or null for all")
        if positives_per_query < 1:
            raise ValueError(f"positives_per_query: {positives_per_query} is less than 1; every query needs a positive")
        self.text_tokenizer = text_tokenizer
        self.negatives_per_query = negatives_per_query
        self.positives_per_query = positives_per_query
        self.generation = generation
        self.passage_prompt = passage_prompt
        self.choice = choice
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sample passages for this epoch from now on."""
        self.epoch = epoch

    def __call__(self, examples: Sequence[PairExample]) -> Batch:
        """The batch of these pairs, in their order."""
        positives = [self._chosen(e.positives, self.positives_per_query, f"{e.row_id}+") for e in examples]
        negatives = [self._chosen(e.negatives, self.negatives_per_query, f"{e.row_id}-") for e in examples]
        width = self.negatives_per_query
        if width is None:
            width = max(map(len, negatives), default=0)
        passages = [
            [*p, *[None] * (self.positives_per_query - len(p)), *n, *[None] * (width - len(n))]
            for p, n in zip(positives, negatives, strict=True)
        ]
        shape = (len(examples), self.positives_per_query + width)
        passage_mask_BP = torch.tensor([[p is not None for p in row] for row in passages], dtype=torch.bool).view(shape)
        positive_mask_BP = passage_mask_BP.clone()
        positive_mask_BP[:, self.positives_per_query :] = False
        keys = [[ABSENT if p is None else text_key(p) for p in row] for row in passages]
        return Batch(
            query=self._queries(examples),
            passage=self._passages(passages, passage_mask_BP),
            generation=self._generation(examples, passages, passage_mask_BP) if self.generation else None,
            passage_mask_BP=passage_mask_BP,
            positive_mask_BP=positive_mask_BP,
            query_key_B=torch.tensor([text_key(e.query) for e in examples], dtype=torch.long),
            passage_key_BP=torch.tensor(keys, dtype=torch.long).view(shape),
            row_ids=tuple(e.row_id for e in examples),
        )

    def _queries(self, examples: Sequence[PairExample]) -> Texts:
        prompts = [instruction_prompt(e.instruction) for e in examples]
        return self.text_tokenizer.texts([e.query for e in examples], prompts)

    def _passages(self, passages: list[list[str | None]], passage_mask_BP: Tensor) -> Texts:
        present = [p for row in passages for p in row if p is not None]
        return _with_absent(self.text_tokenizer.texts(present, self.passage_prompt), passage_mask_BP)

    def _generation(
        self, examples: Sequence[PairExample], passages: list[list[str | None]], passage_mask_BP: Tensor
    ) -> Texts:
        pairs = [(e.query, p) for e, row in zip(examples, passages, strict=True) for p in row if p is not None]
        scored = self.text_tokenizer.generation([q for q, _ in pairs], [p for _, p in pairs])
        return _with_absent(scored, passage_mask_BP)

    def _chosen(self, texts: Sequence[str], at_most: int | None, row: str) -> Sequence[str]:
        """The passages a row brings in this epoch, in the row's order."""
        if at_most is None or len(texts) <= at_most:
            return texts
        if self.choice == "first":
            return texts[:at_most]
        drawn = sorted(range(len(texts)), key=lambda i: text_key(f"{self.seed}:{self.epoch}:{row}{i}"))
        return [texts[i] for i in sorted(drawn[:at_most])]


def _with_absent(present: Texts, mask_BP: Tensor) -> Texts:
    """B*P texts of which only the unmasked ones have tokens; absent texts have length 0."""
    mask_N = mask_BP.flatten()
    lengths_N = present.lengths_N.new_zeros(mask_N.shape).masked_scatter(mask_N, present.lengths_N)
    skip_N = present.skip_N.new_zeros(mask_N.shape).masked_scatter(mask_N, present.skip_N)
    return Texts(present.ids_X, lengths_N, skip_N)
