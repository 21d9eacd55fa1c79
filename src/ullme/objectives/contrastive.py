"""The contrastive objective over the global batch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, PositiveInt, model_validator
from torch import Tensor

from ullme.objectives import functional as F
from ullme.objectives.base import Objective
from ullme.types import Need, ObjectiveInputs

#: Other names of the losses; with one positive per query NT-Xent is InfoNCE.
LOSS_ALIASES = {"InfoNCE": "NTXentLoss", "NTXent": "NTXentLoss", "SupCon": "SupConLoss"}


def _loss_name(value: Any) -> Any:
    return LOSS_ALIASES.get(value, value) if isinstance(value, str) else value


class Contrastive(Objective):
    """L_CL: each query's positives against its hard negatives and the other passages of the global batch.

    Attributes:
        loss: ``NTXentLoss`` (also ``InfoNCE``): each positive against the negatives; ``SupConLoss``: all positives
            share one softmax. The two agree where every query has one positive.
        temperature: divides the cosine similarities; 0.05 is the default of the paper's public code.
        symmetric: average with the loss of the opposite direction, each positive against the batch's queries.
        in_batch_negatives: count other queries' passages as negatives, but for those of sources that opt out.
        hard_negatives: count hard negatives.
        false_negative_margin: leave out another query's passage (and, when symmetric, another query) that scores above
            the positive by more than this; None keeps all (Zhang et al. 2025, Qwen3 Embedding, equation 1: 0.1). May
            be negative.
        margin_type: ``absolute``: above s + margin; ``relative``: above s + margin * abs(s); s is the score of the
            query's best positive.
        matryoshka_dims: leading dimensions of the embedding that must serve alone (Kusupati et al. 2022); list the
            full width too where it shall count. Empty: the full width alone.
        matryoshka_weights: weight of each of these, one per dimension, by default equal. The loss is their weighted
            mean, so that ``weight`` means the same whatever the number of dimensions.
    """

    couples_batch: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"embedding"})

    type: Literal["contrastive"] = "contrastive"
    loss: Annotated[Literal["NTXentLoss", "SupConLoss"], BeforeValidator(_loss_name)] = "NTXentLoss"
    temperature: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    symmetric: bool = False
    in_batch_negatives: bool = True
    hard_negatives: bool = True
    false_negative_margin: float | None = Field(default=None, allow_inf_nan=False)
    margin_type: Literal["absolute", "relative"] = "absolute"
    matryoshka_dims: tuple[PositiveInt, ...] = ()
    matryoshka_weights: tuple[Annotated[float, Field(gt=0)], ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Contrastive:
        if self.matryoshka_weights and len(self.matryoshka_weights) != len(self.matryoshka_dims):
            raise ValueError(
                f"matryoshka_weights: {len(self.matryoshka_weights)} weights for {len(self.matryoshka_dims)} "
                "matryoshka_dims; give one weight per dimension"
            )
        if self.symmetric and not self.in_batch_negatives:
            raise ValueError(
                "symmetric: the passage-to-query direction has no negatives without in_batch_negatives; "
                "set in_batch_negatives to true or symmetric to false"
            )
        if not (self.in_batch_negatives or self.hard_negatives):
            raise ValueError("hard_negatives: no negatives are left; set in_batch_negatives or hard_negatives to true")
        return self

    def loss_B(self, inputs: ObjectiveInputs) -> Tensor:
        """The loss of each query of the global batch, (B,)."""
        assert inputs.query_BD is not None and inputs.passage_BPD is not None
        width = inputs.query_BD.shape[-1]
        dims = self.matryoshka_dims or (width,)
        if max(dims) > width:
            raise ValueError(
                f"matryoshka_dims: {max(dims)} exceeds the embedding's {width} dimensions; leave it out or lower it"
            )
        found = F.candidates(
            inputs.passage_mask_BP,
            inputs.positive_mask_BP,
            inputs.query_key_B,
            inputs.passage_key_BP,
            self.in_batch_negatives,
            self.hard_negatives,
            inputs.in_batch_B,
        )
        weights = self.matryoshka_weights or (1.0,) * len(dims)
        losses = [
            w * self._at_width(inputs.query_BD[:, :d], inputs.passage_BPD[..., :d], inputs, found)
            for d, w in zip(dims, weights, strict=True)
        ]
        return torch.stack(losses).sum(0) / sum(weights)

    def _at_width(self, query_BD: Tensor, passage_BPD: Tensor, inputs: ObjectiveInputs, found: F.Candidates) -> Tensor:
        query_BD = torch.nn.functional.normalize(query_BD, dim=-1)
        passage_CD = torch.nn.functional.normalize(passage_BPD, dim=-1).flatten(0, 1)
        score_BC = query_BD @ passage_CD.T
        positive_BP = inputs.positive_mask_BP & inputs.passage_mask_BP
        negative_BC = found.negative_BC & (found.own_BC | ~self._suspects(score_BC, positive_BP))
        loss_B = F.query_to_passage_loss(
            score_BC, positive_BP, negative_BC, self.temperature, self.loss == "SupConLoss"
        )
        if not self.symmetric:
            return loss_B
        negative_BPB = self._negative_queries(score_BC, positive_BP, inputs, found)
        return (loss_B + F.passage_to_query_loss(score_BC, positive_BP, negative_BPB, self.temperature)) / 2

    def _suspects(self, score_BC: Tensor, positive_BP: Tensor) -> Tensor:
        """Candidates that outscore the query's best positive by the margin, (B, C): unlabelled positives, it seems."""
        if self.false_negative_margin is None:
            return torch.zeros_like(score_BC, dtype=torch.bool)
        score_BC = score_BC.detach()
        best_B = F.own_values(score_BC, positive_BP.shape[1]).masked_fill(~positive_BP, -1.0).amax(1)
        limit_B = F.margin_threshold(best_B, self.false_negative_margin, self.margin_type == "relative")
        return score_BC > limit_B[:, None]

    def _negative_queries(
        self, score_BC: Tensor, positive_BP: Tensor, inputs: ObjectiveInputs, found: F.Candidates
    ) -> Tensor:
        """Queries c that are negatives of passage p of query b, (B, P, B): existing, unequal, and not its own too."""
        queries, passages = positive_BP.shape
        shape = (queries, queries, passages)
        exists_B = inputs.passage_mask_BP.any(1)
        unequal_BB = inputs.query_key_B[:, None] != inputs.query_key_B
        if inputs.in_batch_B is not None:
            unequal_BB = unequal_BB & inputs.in_batch_B[:, None] & inputs.in_batch_B
        negative_BPB = (unequal_BB & exists_B)[:, None, :] & ~found.equal_BC.view(shape).permute(1, 2, 0)
        if self.false_negative_margin is None:
            return negative_BPB
        score_BPB = score_BC.detach().view(shape).permute(1, 2, 0)
        own_BP = F.own_values(score_BC.detach(), passages)
        limit_BP = F.margin_threshold(own_BP, self.false_negative_margin, self.margin_type == "relative")
        return negative_BPB & (score_BPB <= limit_BP[..., None])
