"""KTO: each passage by itself is desirable or not, measured from how far the policy has left its reference."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ullme.objectives.base import Objective
from ullme.types import Need, ObjectiveInputs


class KTO(Objective):
    """1 - sigmoid(beta (r - z)) of positives, 1 - sigmoid(beta (z - r)) of negatives (Ethayarajh et al. 2024, eq. 7).

    r = log pi(p|q) - log ref(p|q), summed over tokens. z = max(0, mean of r over the global batch's mismatched pairs)
    estimates the divergence of the policy from its reference; it is measured beforehand, in eval mode, carries no
    gradient, and is 0 where nothing is mismatched.

    A query's loss is the sum over its passages times (queries / passages of the global batch), so that the mean over
    queries is the paper's mean over passages. A query without negatives has its positives' loss.

    Attributes:
        beta: how fast the loss saturates; the paper's 0.1.
        desirable_weight: lambda_D, of the positives; 1.
        undesirable_weight: lambda_U, of the negatives; 1. With n negatives to a positive, about 1 / n gives both sides
            the same say, as the paper advises.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"logp", "reference"})
    measures: ClassVar[frozenset[Need]] = frozenset({"mismatched"})

    type: Literal["kto"] = "kto"
    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    desirable_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    undesirable_weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    def sums_BS(self, inputs: ObjectiveInputs) -> Tensor:
        """Of each query, (B, 4): mismatched log-ratios, mismatched passages, passages, and the query itself."""
        logp_BP, ref_BP = inputs.mismatched_logp_BP, inputs.mismatched_ref_logp_BP
        assert logp_BP is not None and ref_BP is not None and inputs.mismatched_tokens_BP is not None
        exists_BP = inputs.mismatched_tokens_BP > 0
        ratio_B = torch.where(exists_BP, logp_BP.double() - ref_BP.double(), 0.0).sum(1)
        passages_B = inputs.passage_mask_BP.sum(1)
        counts = (exists_BP.sum(1), passages_B, torch.ones_like(passages_B))
        return torch.stack([ratio_B, *(count_B.double() for count_B in counts)], dim=1)

    def loss_B(self, inputs: ObjectiveInputs) -> Tensor:
        """The loss of each query, (B,); its mean over the global batch is the mean over all passages."""
        assert inputs.logp_BP is not None and inputs.ref_logp_BP is not None and inputs.totals_S is not None
        ratio, mismatched, passages, queries = inputs.totals_S.detach().to(inputs.logp_BP.dtype)
        divergence = (ratio / mismatched.clamp(min=1)).clamp(min=0)
        gain_BP = self.beta * (inputs.logp_BP - inputs.ref_logp_BP - divergence)
        # 1 - sigmoid(x) is sigmoid(-x), which keeps its digits where x is large
        desirable_BP = self.desirable_weight * torch.sigmoid(-gain_BP)
        loss_BP = torch.where(inputs.positive_mask_BP, desirable_BP, self.undesirable_weight * torch.sigmoid(gain_BP))
        return torch.where(inputs.passage_mask_BP, loss_BP, 0.0).sum(1) * (queries / passages.clamp(min=1))
