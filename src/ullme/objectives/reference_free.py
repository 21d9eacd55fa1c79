"""Preference objectives without a reference: likelihoods themselves are compared, none is computed twice.

Where an objective adds the negative log-likelihood of the positives, that is :class:`ullme.objectives.SFT`: a mean over
each positive's tokens, query by query. TRL pools the tokens of all positives of a batch instead, which weights a long
passage more and makes a row's loss depend on its batch; the two agree where the positives are equally long.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ullme.objectives import functional as F
from ullme.objectives.preference import Preference
from ullme.objectives.sft import SFT
from ullme.types import Need, ObjectiveInputs


class CPO(Preference):
    """-log sigmoid(beta * (log pi(p+|q) - log pi(p-|q))) + alpha L_SFT (Xu et al. 2024, equation 3).

    The preference term of a query without negatives is zero; its likelihood still counts.

    Attributes:
        beta: scales the margin; 0.1.
        alpha: weight of the likelihood of the positives; the paper adds it with weight 1 (``cpo_alpha`` of TRL).
        label_smoothing: the probability that a label is wrong, as in :class:`ullme.objectives.DPO`; the paper has none.
        length_normalised: compare mean instead of summed log-likelihoods; the paper sums.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"logp"})
    needs_negatives: ClassVar[bool] = False

    type: Literal["cpo"] = "cpo"
    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    alpha: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    length_normalised: bool = False

    def value_BP(self, inputs: ObjectiveInputs) -> Tensor:
        """Log-likelihood of each passage, in nats or nats per token, (B, P)."""
        assert inputs.logp_BP is not None
        return inputs.mean_logp_BP if self.length_normalised else inputs.logp_BP

    def pair_loss(self, margin_BPP: Tensor) -> Tensor:
        """Logistic loss of the scaled margin."""
        return F.logistic_loss(self.beta * margin_BPP, self.label_smoothing)

    def loss_B(self, inputs: ObjectiveInputs) -> Tensor:
        """The loss of each query, (B,)."""
        return super().loss_B(inputs) + self.alpha * SFT().loss_B(inputs)


class SimPO(Preference):
    """-log sigmoid(beta * (s_gen(q, p+) - s_gen(q, p-)) - gamma) (Meng et al. 2024, equation 6).

    Attributes:
        beta: scales the margin; the paper's 2 (TRL shares one default, 0.1, between this and CPO).
        gamma: by how much a positive is to win; 0.5, TRL's ``simpo_gamma``. It is to be tuned together with beta.
        label_smoothing: the probability that a label is wrong, as in :class:`ullme.objectives.DPO`; the paper has none.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"logp"})

    type: Literal["simpo"] = "simpo"
    beta: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    gamma: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)

    def value_BP(self, inputs: ObjectiveInputs) -> Tensor:
        """Mean log-likelihood of each passage's tokens, (B, P)."""
        return inputs.mean_logp_BP

    def pair_loss(self, margin_BPP: Tensor) -> Tensor:
        """Logistic loss of the scaled margin beyond gamma."""
        return F.logistic_loss(self.beta * margin_BPP - self.gamma, self.label_smoothing)


class ORPO(Preference):
    """L_SFT - beta log sigmoid(log of the odds ratio of p+ to p-) (Hong et al. 2024, equations 4 to 7).

    odds = P / (1 - P), where log P is the mean log-likelihood of the passage's tokens. The odds term of a query without
    negatives is zero; its likelihood still counts. L_SFT scores the passage, as the paper has it; TRL 1.16 also scores
    the prompt there.

    Attributes:
        beta: weight of the odds term, the paper's lambda; 0.1.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"logp"})
    needs_negatives: ClassVar[bool] = False

    type: Literal["orpo"] = "orpo"
    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False)

    def value_BP(self, inputs: ObjectiveInputs) -> Tensor:
        """Log-odds of each passage, (B, P)."""
        return F.log_odds(inputs.mean_logp_BP)

    def pair_loss(self, margin_BPP: Tensor) -> Tensor:
        """Weighted logistic loss of the log odds ratio."""
        return self.beta * F.logistic_loss(margin_BPP)

    def loss_B(self, inputs: ObjectiveInputs) -> Tensor:
        """The loss of each query, (B,)."""
        return super().loss_B(inputs) + SFT().loss_B(inputs)
