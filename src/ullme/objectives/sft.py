"""Supervised fine-tuning: the likelihood of the positive passage given the query."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from ullme.objectives import functional as F
from ullme.objectives.base import Objective
from ullme.types import Need, ObjectiveInputs


class SFT(Objective):
    """L_SFT: mean negative log-likelihood of a positive's tokens given the query, averaged over its positives."""

    needs: ClassVar[frozenset[Need]] = frozenset({"logp"})

    type: Literal["sft"] = "sft"

    def loss_B(self, inputs: ObjectiveInputs) -> Tensor:
        """The loss of each query, (B,), in nats per token."""
        positive_BP = inputs.positive_mask_BP & inputs.passage_mask_BP
        return F.mean_where(-inputs.mean_logp_BP, positive_BP, dim=1)
