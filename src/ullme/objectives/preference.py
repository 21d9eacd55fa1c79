"""Preference objectives: the positive passage is to be likelier than every negative one."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ullme.objectives import functional as F
from ullme.objectives.base import Objective
from ullme.types import Need, ObjectiveInputs


class DPO(Objective):
    """L_DPO (Rafailov et al. 2023, equation 7), averaged over every pair of a positive and a negative of the query.

    Log-likelihoods are sums over the passage's tokens, and the reference is the model without its adapter. A query
    without negatives has zero loss.

    Attributes:
        beta: how strongly the reference holds; the paper's 0.1.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"logp", "reference"})
    needs_negatives: ClassVar[bool] = True

    type: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False)

    def loss_B(self, inputs: ObjectiveInputs) -> Tensor:
        """The loss of each query, (B,)."""
        assert inputs.logp_BP is not None and inputs.ref_logp_BP is not None
        positive_BP = inputs.positive_mask_BP & inputs.passage_mask_BP
        negative_BP = inputs.passage_mask_BP & ~inputs.positive_mask_BP
        return F.dpo_loss(inputs.logp_BP, inputs.ref_logp_BP, positive_BP, negative_BP, self.beta)
