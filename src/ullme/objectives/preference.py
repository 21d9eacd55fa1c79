"""Preference objectives: the positive passage is preferred to every negative one, and more so than by the reference."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ullme.objectives import functional as F
from ullme.objectives.base import Objective
from ullme.types import Need, ObjectiveInputs


class Preference(Objective):
    """A loss of the margin between two passages, averaged over every (positive, negative) pair of the query.

    A subclass says what is compared and what a margin costs. A query without negatives has no pair, and zero loss.
    """

    needs_negatives: ClassVar[bool] = True

    def value_BP(self, inputs: ObjectiveInputs) -> Tensor:  # noqa: N802 - the suffix is the shape
        """The quantity in which a positive is to exceed a negative, (B, P); anything for an absent passage."""
        raise NotImplementedError

    def pair_loss(self, margin_BPP: Tensor) -> Tensor:
        """The loss of each pair from ``value[positive] - value[negative]``, elementwise."""
        raise NotImplementedError

    def loss_B(self, inputs: ObjectiveInputs) -> Tensor:
        """The loss of each query, (B,)."""
        loss_BPP = self.pair_loss(F.pairwise_margin(self.value_BP(inputs)))
        positive_BP = inputs.positive_mask_BP & inputs.passage_mask_BP
        return F.mean_over_pairs(loss_BPP, positive_BP, inputs.passage_mask_BP & ~inputs.positive_mask_BP)


class LogRatioPreference(Preference):
    """What is compared is log pi(p|q) - log ref(p|q); the reference is the model without its adapter.

    Attributes:
        beta: how strongly the reference holds.
        length_normalised: divide each passage's log-ratio by its number of tokens.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"logp", "reference"})

    beta: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    length_normalised: bool = False

    def value_BP(self, inputs: ObjectiveInputs) -> Tensor:
        """Log-ratio of policy to reference, in nats or nats per token, (B, P)."""
        assert inputs.logp_BP is not None and inputs.ref_logp_BP is not None and inputs.tokens_BP is not None
        ratio_BP = inputs.logp_BP - inputs.ref_logp_BP
        return ratio_BP / inputs.tokens_BP.clamp(min=1) if self.length_normalised else ratio_BP


class DPO(LogRatioPreference):
    """L_DPO = -log sigmoid(beta * margin of log-ratios) (Rafailov et al. 2023, equation 7).

    Attributes:
        beta: the paper's 0.1.
        label_smoothing: the probability e that a label is wrong; the loss is then (1 - e) L(margin) + e L(-margin)
            (conservative DPO, Mitchell 2023). The paper has none.
        length_normalised: the paper sums over tokens; with true this is TRL's ``sigmoid_norm``.
    """

    type: Literal["dpo"] = "dpo"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)

    def pair_loss(self, margin_BPP: Tensor) -> Tensor:
        """Logistic loss of the scaled margin."""
        return F.logistic_loss(self.beta * margin_BPP, self.label_smoothing)


class IPO(LogRatioPreference):
    """L_IPO = (margin of log-ratios - 1 / (2 beta))^2 (Azar et al. 2023, equation 17, where beta is tau).

    The target is one number whatever the lengths, so the log-ratios are divided by the tokens. The paper does not say
    so; TRL does it, on its authors' word, and so does the default here.

    Attributes:
        beta: the paper's tau; the margin aimed at is 1 / (2 beta).
        length_normalised: true; false is the paper's equation read literally.
    """

    type: Literal["ipo"] = "ipo"
    length_normalised: bool = True

    def pair_loss(self, margin_BPP: Tensor) -> Tensor:
        """Squared distance of the margin from its target."""
        return (margin_BPP - 1 / (2 * self.beta)).square()


class Hinge(LogRatioPreference):
    """max(0, 1 - beta * margin of log-ratios): SLiC's hinge (Zhao et al. 2023) on log-ratios, as Liu et al. 2023 (RSO).

    Attributes:
        beta: 1 / beta is the margin beyond which a pair is left alone.
        length_normalised: TRL, and so the default, sums over tokens.
    """

    type: Literal["hinge"] = "hinge"

    def pair_loss(self, margin_BPP: Tensor) -> Tensor:
        """What the scaled margin lacks of 1."""
        return torch.relu(1 - self.beta * margin_BPP)
