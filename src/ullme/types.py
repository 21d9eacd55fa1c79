"""The values that flow through ullme, from a row of data to the inputs of an objective.

Shape legend (suffixes of tensor names everywhere in the project):

- ``B`` queries of a batch, ``P`` passages per query (a positive first, then other positives, then hard negatives),
- ``N`` texts (queries or passages alike), ``T`` tokens of the longest of them, ``X`` tokens of all of them together,
- ``D`` width of a hidden state or an embedding, ``V`` vocabulary, ``L`` learned latents, ``S`` sums over a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Attention = Literal["bidirectional", "causal"]

#: What an objective may need a model to compute of a batch, or a batch to bring; see ``ObjectiveInputs``.
Need = Literal["embedding", "logp", "reference", "mismatched", "masked", "teacher"]

#: The target of a token that is not to be predicted, as torch's cross entropy has it.
IGNORED = -100


@dataclass(frozen=True)
class PairExample:
    """One query with its passages, as a row of training data states them.

    ``scores`` are a teacher's, of each positive and then of each negative; None where the row has none.
    ``in_batch_negatives`` is False for a row that neither takes negatives from others of its batch nor gives them any.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    instruction: str | None = None
    source: str = ""
    row_id: str = ""
    scores: tuple[float, ...] | None = None
    in_batch_negatives: bool = True


@dataclass(frozen=True)
class Texts:
    """N tokenised texts of unequal length, stored end to end without padding.

    ``ids_X`` holds the token ids of all texts, ``lengths_N`` the tokens of each, ``skip_N`` the leading tokens of each
    that are context only: an instruction, which pooling leaves out, or a query, whose likelihood is not scored.
    A text of length 0 stands for an absent passage.
    """

    ids_X: Tensor
    lengths_N: Tensor
    skip_N: Tensor

    @classmethod
    def from_lists(cls, ids: Sequence[Sequence[int]], skip: Sequence[int] | None = None) -> Texts:
        """Texts from one list of token ids per text; ``skip`` counts the context tokens of each (default none)."""
        flat = [token for text in ids for token in text]
        return cls(
            ids_X=torch.tensor(flat, dtype=torch.long),
            lengths_N=torch.tensor([len(text) for text in ids], dtype=torch.long),
            skip_N=torch.tensor(list(skip) if skip is not None else [0] * len(ids), dtype=torch.long),
        )

    @classmethod
    def joined(cls, *parts: Texts) -> Texts:
        """The texts of all parts, one part after the other."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def __len__(self) -> int:
        return self.lengths_N.shape[0]

    @property
    def text_X(self) -> Tensor:  # noqa: N802 - the suffix is the shape
        """Which text each token belongs to, (X,)."""
        return torch.arange(len(self), device=self.lengths_N.device).repeat_interleave(
            self.lengths_N, output_size=self.ids_X.shape[0]
        )

    @property
    def place_X(self) -> Tensor:  # noqa: N802 - the suffix is the shape
        """Each token's place in its text, from 0, (X,)."""
        start_N = self.lengths_N.cumsum(0) - self.lengths_N
        return torch.arange(self.ids_X.shape[0], device=self.ids_X.device) - start_N[self.text_X]

    @property
    def scored_X(self) -> Tensor:  # noqa: N802 - the suffix is the shape
        """True on the tokens that are not context: what is pooled, or whose likelihood counts, (X,)."""
        return self.place_X >= self.skip_N[self.text_X]

    def rows(self, index: Sequence[int] | Tensor) -> Texts:
        """The texts at these positions, in this order."""
        index = torch.as_tensor(index, dtype=torch.long, device=self.lengths_N.device)
        parts = self.ids_X.split(self.lengths_N.tolist())
        chosen = [parts[i] for i in index.tolist()]
        ids_X = torch.cat(chosen) if chosen else self.ids_X[:0]
        return Texts(ids_X, self.lengths_N[index], self.skip_N[index])

    def pad(self, pad_token_id: int, side: Literal["left", "right"] = "right") -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both (N, T); the mask is 1 on real tokens."""
        length = int(self.lengths_N.max()) if len(self) else 0
        place_T = torch.arange(length, device=self.ids_X.device)
        mask_NT = place_T < self.lengths_N[:, None]
        if side == "left":
            mask_NT = mask_NT.flip(1)
        ids_NT = self.ids_X.new_full(mask_NT.shape, pad_token_id).masked_scatter(mask_NT, self.ids_X)
        return ids_NT, mask_NT.long()

    def scored_NT(self, mask_NT: Tensor) -> Tensor:
        """The part of a mask (N, T) that is not context, bool: what is pooled, or whose likelihood counts."""
        return (mask_NT.cumsum(1) > self.skip_N[:, None]) & mask_NT.bool()

    def to(self, device: torch.device | str) -> Texts:
        """The same texts on another device."""
        return _moved(self, device)


@dataclass(frozen=True)
class MaskedTexts:
    """N texts of which some tokens are hidden, and what these were: masked next-token prediction.

    ``target_X`` goes with ``texts.ids_X``: the true id of a token to be predicted, ``IGNORED`` elsewhere.
    """

    texts: Texts
    target_X: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, index: Sequence[int] | Tensor) -> MaskedTexts:
        """The texts at these positions, in this order."""
        return MaskedTexts(self.texts.rows(index), replace(self.texts, ids_X=self.target_X).rows(index).ids_X)

    def to(self, device: torch.device | str) -> MaskedTexts:
        """The same texts on another device."""
        return _moved(self, device)


@dataclass(frozen=True)
class Batch:
    """B queries with their passages, tokenised for both modes.

    ``passage`` and ``generation`` hold B*P texts, the P passages of one query next to each other. ``generation`` is the
    passage after its query (which ``skip_N`` marks as context); None when no objective needs likelihoods.
    ``passage_mask_BP`` marks passages that exist, ``positive_mask_BP`` the positives among them.
    ``query_key_B`` and ``passage_key_BP`` identify equal texts, a passage that is a query's own text (without its
    instruction) among them, so that none is taken for a negative; equal is what no longer differs after the cut.

    The rest is there when an objective needs it. ``mismatched`` holds, like ``generation``, the passages of another
    query of the global batch after this one. ``masked`` holds one text per query with hidden tokens. ``teacher_BP`` are
    a teacher's scores (0 for an absent passage). ``ref_logp_BP`` are the reference's likelihoods where they were
    computed before training. ``in_batch_B`` marks the queries that take other queries' passages for negatives and whose
    own passages others take; None marks all.
    """

    query: Texts
    passage: Texts
    generation: Texts | None
    passage_mask_BP: Tensor
    positive_mask_BP: Tensor
    query_key_B: Tensor
    passage_key_BP: Tensor
    row_ids: tuple[str, ...]
    mismatched: Texts | None = None
    masked: MaskedTexts | None = None
    teacher_BP: Tensor | None = None
    ref_logp_BP: Tensor | None = None
    in_batch_B: Tensor | None = None

    def __len__(self) -> int:
        return len(self.row_ids)

    def rows(self, index: Sequence[int]) -> Batch:
        """The queries at these positions with all their passages, in this order."""
        width = self.passage_mask_BP.shape[1]
        flat = [b * width + p for b in index for p in range(width)]
        at_B = torch.as_tensor(index, dtype=torch.long, device=self.query_key_B.device)
        return Batch(
            query=self.query.rows(at_B),
            passage=self.passage.rows(flat),
            generation=None if self.generation is None else self.generation.rows(flat),
            passage_mask_BP=self.passage_mask_BP[at_B],
            positive_mask_BP=self.positive_mask_BP[at_B],
            query_key_B=self.query_key_B[at_B],
            passage_key_BP=self.passage_key_BP[at_B],
            row_ids=tuple(self.row_ids[b] for b in index),
            mismatched=None if self.mismatched is None else self.mismatched.rows(self._mismatched_rows(index)),
            masked=None if self.masked is None else self.masked.rows(at_B),
            teacher_BP=None if self.teacher_BP is None else self.teacher_BP[at_B],
            ref_logp_BP=None if self.ref_logp_BP is None else self.ref_logp_BP[at_B],
            in_batch_B=None if self.in_batch_B is None else self.in_batch_B[at_B],
        )

    def _mismatched_rows(self, index: Sequence[int]) -> list[int]:
        """Where these queries' mismatched texts are: as many as the global batch's richest query has passages."""
        assert self.mismatched is not None
        width = len(self.mismatched) // max(len(self), 1)
        return [b * width + p for b in index for p in range(width)]

    def tokens_B(self) -> Tensor:
        """Tokens that each query brings to a forward pass with gradient: of all its texts but the mismatched ones."""
        tokens_B = self.query.lengths_N + self.passage.lengths_N.view(len(self), -1).sum(1)
        if self.generation is not None:
            tokens_B = tokens_B + self.generation.lengths_N.view(len(self), -1).sum(1)
        if self.masked is not None:
            tokens_B = tokens_B + self.masked.texts.lengths_N
        return tokens_B

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return _moved(self, device)


@dataclass(frozen=True)
class ObjectiveInputs:
    """What objectives see of B queries; a field that no objective of the run needs is None.

    ``query_BD`` and ``passage_BPD`` are embeddings (fp32, not normalised; absent passages are zero).
    ``logp_BP`` is log pi(p|q) summed over the passage's tokens, ``ref_logp_BP`` the same under the reference model,
    ``tokens_BP`` the number of tokens summed over (0 for an absent passage). ``mismatched_logp_BP``,
    ``mismatched_ref_logp_BP`` and ``mismatched_tokens_BP`` are the same of each query with another one's passages.
    ``masked_logp_B`` is the log-likelihood summed over a text's ``masked_tokens_B`` hidden tokens. ``teacher_BP`` are a
    teacher's scores. ``totals_S`` are an objective's own sums over the global batch (``Objective.sums_BS``).
    ``in_batch_B`` is the batch's.
    """

    passage_mask_BP: Tensor
    positive_mask_BP: Tensor
    query_key_B: Tensor
    passage_key_BP: Tensor
    row_ids: tuple[str, ...]
    query_BD: Tensor | None = None
    passage_BPD: Tensor | None = None
    logp_BP: Tensor | None = None
    ref_logp_BP: Tensor | None = None
    tokens_BP: Tensor | None = None
    mismatched_logp_BP: Tensor | None = None
    mismatched_ref_logp_BP: Tensor | None = None
    mismatched_tokens_BP: Tensor | None = None
    masked_logp_B: Tensor | None = None
    masked_tokens_B: Tensor | None = None
    teacher_BP: Tensor | None = None
    totals_S: Tensor | None = None
    in_batch_B: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch, **tensors: Tensor | None) -> ObjectiveInputs:
        """The inputs of a batch's rows with these embeddings and likelihoods, and what the batch itself brings."""
        brought = {name: getattr(batch, name) for name in ("teacher_BP", "ref_logp_BP", "in_batch_B")}
        return cls(
            passage_mask_BP=batch.passage_mask_BP,
            positive_mask_BP=batch.positive_mask_BP,
            query_key_B=batch.query_key_B,
            passage_key_BP=batch.passage_key_BP,
            row_ids=batch.row_ids,
            **{**brought, **tensors},
        )

    @property
    def score_BP(self) -> Tensor:
        """s_rt(q, p): cosine similarity of query and passage embeddings (paper, section 2)."""
        assert self.query_BD is not None and self.passage_BPD is not None, "this batch was not embedded"
        query_BD = torch.nn.functional.normalize(self.query_BD, dim=-1)
        passage_BPD = torch.nn.functional.normalize(self.passage_BPD, dim=-1)
        return torch.einsum("bd,bpd->bp", query_BD, passage_BPD)

    @property
    def mean_logp_BP(self) -> Tensor:
        """s_gen(q, p): mean log-likelihood of the passage's tokens given the query (paper, section 2)."""
        assert self.logp_BP is not None and self.tokens_BP is not None, "this batch was not scored"
        return self.logp_BP / self.tokens_BP.clamp(min=1)


Moved = TypeVar("Moved", Texts, MaskedTexts, Batch)


def _moved(value: Moved, device: torch.device | str) -> Moved:
    """A copy of a frozen dataclass with every tensor (and nested Texts) on ``device``."""
    there: dict[str, Any] = {f.name: getattr(value, f.name) for f in fields(value)}
    there = {name: v.to(device) for name, v in there.items() if isinstance(v, Tensor | Texts | MaskedTexts)}
    return replace(value, **there)
