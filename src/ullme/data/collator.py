"""Pairs to a tokenised batch, through the same tokenizer that encoding and evaluation use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ullme.data.masking import TokenMasking
from ullme.data.tables import text_key
from ullme.data.wording import shortened
from ullme.prompts import TextTokenizer
from ullme.templates import instruction_prompt
from ullme.types import Batch, MaskedTexts, PairExample, Texts

Choice = Literal["first", "sampled"]

#: The key of an absent passage; keys of texts are never negative.
ABSENT = -1


class PairCollator:
    """Turns B pairs into one ``Batch``.

    A query's P passages are ``positives_per_query`` positives, then its hard negatives; what a row lacks is absent
    (length 0, mask False, key ``ABSENT``). With ``negatives_per_query`` given, P is the same for every batch and rank;
    with None it is that of the batch's richest row. An instruction stands before its query only.

    Which of several passages a row brings depends on nothing but ``(seed, epoch, row_id)``: its ``first`` ones, or
    ones ``sampled`` anew each epoch (``set_epoch``). So does what ``masking`` hides of its first positive, which for a
    text alone is the text.

    The batch has a teacher's scores where every row brings some.

    Attributes:
        text_tokenizer: the one way from text to ids.
        negatives_per_query: hard negatives of a query at most; None takes all, 0 none.
        positives_per_query: positives of a query at most.
        generation: also tokenise each passage after its query, for likelihoods.
        query_prompt: prompt before every query that has no instruction.
        passage_prompt: prompt before every passage to be embedded.
        choice: ``first`` or ``sampled``.
        masking: also bring each row's first positive with tokens hidden.
    """

    def __init__(
        self,
        text_tokenizer: TextTokenizer,
        negatives_per_query: int | None = None,
        positives_per_query: int = 1,
        *,
        generation: bool = False,
        query_prompt: str = "",
        passage_prompt: str = "",
        choice: Choice = "first",
        seed: int = 0,
        masking: TokenMasking | None = None,
    ) -> None:
        if negatives_per_query is not None and negatives_per_query < 0:
            raise ValueError(f"negatives_per_query: {negatives_per_query} is negative; give 0 or more, or null for all")
        if positives_per_query < 1:
            raise ValueError(f"positives_per_query: {positives_per_query} is less than 1; every query needs a positive")
        if masking is not None and text_tokenizer.echo:
            raise ValueError("echo: True repeats every text, so that no token of it is hidden; set echo to false")
        self.text_tokenizer = text_tokenizer
        self.negatives_per_query = negatives_per_query
        self.positives_per_query = positives_per_query
        self.generation = generation
        self.query_prompt = query_prompt
        self.passage_prompt = passage_prompt
        self.choice = choice
        self.seed = seed
        self.masking = masking
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sample passages for this epoch from now on."""
        self.epoch = epoch

    def __call__(self, examples: Sequence[PairExample]) -> Batch:
        """The batch of these pairs, in their order."""
        chosen = self._chosen_passages(examples)
        passages = [
            [None if i is None else _passages_of(e)[i] for i in row] for e, row in zip(examples, chosen, strict=True)
        ]
        least = self.positives_per_query + (self.negatives_per_query or 0)
        shape = (len(examples), max(map(len, chosen), default=least))
        passage_mask_BP = torch.tensor([[p is not None for p in row] for row in passages], dtype=torch.bool).view(shape)
        positive_mask_BP = passage_mask_BP.clone()
        positive_mask_BP[:, self.positives_per_query :] = False
        passage, passage_key_BP = self._passages(passages, passage_mask_BP)
        return Batch(
            query=self._queries(examples),
            passage=passage,
            generation=self._generation(examples, passages, passage_mask_BP) if self.generation else None,
            passage_mask_BP=passage_mask_BP,
            positive_mask_BP=positive_mask_BP,
            query_key_B=self._read_passages([e.query for e in examples])[1],
            passage_key_BP=passage_key_BP,
            row_ids=tuple(e.row_id for e in examples),
            masked=None if self.masking is None else self._masked(examples, passages, self.masking),
            teacher_BP=_scores(examples, chosen, shape),
            in_batch_B=torch.tensor([e.in_batch_negatives for e in examples], dtype=torch.bool),
        )

    def _chosen_passages(self, examples: Sequence[PairExample]) -> list[list[int | None]]:
        """Of each row the passages it brings, as their places among its positives and negatives; None if absent."""
        positives = [self._chosen(len(e.positives), self.positives_per_query, f"{e.row_id}+") for e in examples]
        negatives = [self._chosen(len(e.negatives), self.negatives_per_query, f"{e.row_id}-") for e in examples]
        width = self.negatives_per_query
        if width is None:
            width = max(map(len, negatives), default=0)
        return [
            [*_filled(p, self.positives_per_query), *_filled([len(e.positives) + i for i in n], width)]
            for e, p, n in zip(examples, positives, negatives, strict=True)
        ]

    def _queries(self, examples: Sequence[PairExample]) -> Texts:
        prompts = [instruction_prompt(e.instruction) or self.query_prompt for e in examples]
        return self.text_tokenizer.texts([e.query for e in examples], prompts)

    def _passages(self, passages: list[list[str | None]], passage_mask_BP: Tensor) -> tuple[Texts, Tensor]:
        present, key_N = self._read_passages([p for row in passages for p in row if p is not None])
        key_BP = torch.full_like(passage_mask_BP, ABSENT, dtype=torch.long).masked_scatter(passage_mask_BP, key_N)
        return _with_absent(present, passage_mask_BP), key_BP

    def _read_passages(self, texts: Sequence[str]) -> tuple[Texts, Tensor]:
        """Texts read as passages, and their keys, (N,).

        A key is of the text; where its tokens fill ``max_length`` it is of these, since what is cut off tells no two
        passages apart. With ``echo``, which may cut a text to fewer tokens, it is of the tokens always. A query's key
        is that of its bare text read so, which another row's passage may equal.
        """
        least = 0 if self.text_tokenizer.echo else self.text_tokenizer.max_length
        read = self.text_tokenizer.texts(texts, self.passage_prompt)
        parts = read.ids_X.split(read.lengths_N.tolist())
        known = [str(p.tolist()) if len(p) >= least else t for t, p in zip(texts, parts, strict=True)]
        return read, torch.tensor([text_key(name) for name in known], dtype=torch.long)

    def _generation(
        self, examples: Sequence[PairExample], passages: list[list[str | None]], passage_mask_BP: Tensor
    ) -> Texts:
        pairs = [(e.query, p) for e, row in zip(examples, passages, strict=True) for p in row if p is not None]
        scored = self.text_tokenizer.generation([q for q, _ in pairs], [p for _, p in pairs])
        return _with_absent(scored, passage_mask_BP)

    def _masked(
        self, examples: Sequence[PairExample], passages: list[list[str | None]], masking: TokenMasking
    ) -> MaskedTexts:
        first = [positive for positive, *_ in passages if positive is not None]
        seeds = [text_key(f"{self.seed}:{self.epoch}:{e.row_id}?") for e in examples]
        return masking.hide(self.text_tokenizer.texts(first), seeds)

    def _chosen(self, count: int, at_most: int | None, row: str) -> list[int]:
        """Which of ``count`` passages a row brings in this epoch, in the row's order."""
        every = list(range(count))
        if at_most is None or count <= at_most:
            return every
        if self.choice == "first":
            return every[:at_most]
        drawn = sorted(every, key=lambda i: text_key(f"{self.seed}:{self.epoch}:{row}{i}"))
        return sorted(drawn[:at_most])


def _passages_of(example: PairExample) -> tuple[str, ...]:
    return example.positives + example.negatives


def _filled(places: list[int], width: int) -> list[int | None]:
    return [*places, *[None] * (width - len(places))]


def _scores(examples: Sequence[PairExample], chosen: list[list[int | None]], shape: tuple[int, int]) -> Tensor | None:
    """A teacher's scores of the chosen passages, (B, P), 0 for an absent one; None unless every row has scores."""
    scores = [e.scores for e in examples if e.scores is not None]
    if len(scores) < len(examples):
        return None
    for example, given in zip(examples, scores, strict=True):
        if len(given) != len(_passages_of(example)):
            at = f"{example.row_id or shortened(example.query)}: scores"
            raise ValueError(f"{at}: {len(given)} for {len(_passages_of(example))} passages; give one for each")
    rows = [[0.0 if i is None else given[i] for i in row] for given, row in zip(scores, chosen, strict=True)]
    return torch.tensor(rows, dtype=torch.float32).view(shape)


def _with_absent(present: Texts, mask_BP: Tensor) -> Texts:
    """B*P texts of which only the unmasked ones have tokens; absent texts have length 0."""
    mask_N = mask_BP.flatten()
    lengths_N = present.lengths_N.new_zeros(mask_N.shape).masked_scatter(mask_N, present.lengths_N)
    skip_N = present.skip_N.new_zeros(mask_N.shape).masked_scatter(mask_N, present.skip_N)
    return Texts(present.ids_X, lengths_N, skip_N)
