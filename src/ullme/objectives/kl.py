"""GRL's KL term: retrieval scores and generation likelihoods are to rank a query's passages alike."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ullme.objectives import functional as F
from ullme.objectives.base import Objective
from ullme.types import Need, ObjectiveInputs


class KL(Objective):
    """L_KL = sum over U of P_rt log(P_rt / P_gen), both softmaxes over the query's own passages U.

    P_rt comes from the cosine similarities s_rt, P_gen from the mean token log-likelihoods s_gen. A query without
    negatives has zero loss.

    Attributes:
        direction: ``rt||gen`` is KL(P_rt || P_gen), the paper's; ``gen||rt`` the reverse.
        temperature_rt: divides s_rt; the paper's equation has none, that is 1.
        temperature_gen: divides s_gen; likewise.
        stop_gradient: the side that is taken as given: ``rt``, ``gen``, or ``none`` (both learn).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"embedding", "logp"})
    needs_negatives: ClassVar[bool] = True

    type: Literal["kl"] = "kl"
    direction: Literal["rt||gen", "gen||rt"] = "rt||gen"
    temperature_rt: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    temperature_gen: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    stop_gradient: Literal["none", "rt", "gen"] = "none"

    def loss_B(self, inputs: ObjectiveInputs) -> Tensor:
        """The loss of each query, (B,)."""
        mask_BP = inputs.passage_mask_BP
        rt_BP = F.log_softmax_where(inputs.score_BP / self.temperature_rt, mask_BP)
        gen_BP = F.log_softmax_where(inputs.mean_logp_BP / self.temperature_gen, mask_BP)
        rt_BP = rt_BP.detach() if self.stop_gradient == "rt" else rt_BP
        gen_BP = gen_BP.detach() if self.stop_gradient == "gen" else gen_BP
        p_BP, q_BP = (rt_BP, gen_BP) if self.direction == "rt||gen" else (gen_BP, rt_BP)
        has_negative_B = (mask_BP & ~inputs.positive_mask_BP).any(1)
        return torch.where(has_negative_B, F.kl_divergence(p_BP, q_BP, mask_BP), 0.0)
