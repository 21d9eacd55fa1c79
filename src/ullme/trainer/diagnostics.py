"""What evaluation reports beside the losses: do the two spaces agree, and is a positive likelier than its negatives."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
from torch import Tensor

from ullme.objectives import functional as F
from ullme.types import Need, ObjectiveInputs


class PerQuery(NamedTuple):
    """A value for each query, and which queries have one."""

    value_B: Tensor
    counted_B: Tensor


class Diagnostic(NamedTuple):
    """A figure per query and what must have been computed for it; its mean over the counted queries is reported."""

    needs: frozenset[Need]
    of: Callable[[ObjectiveInputs], PerQuery]


def rank_agreement(inputs: ObjectiveInputs) -> PerQuery:
    """How alike the scores s_rt and the likelihoods s_gen rank a query's own passages: Kendall's tau-b, -1 to 1.

    A query has one unless all its passages are equal in one of the two, as a lone passage is.
    """
    return kendall_tau(inputs.score_BP, inputs.mean_logp_BP, inputs.passage_mask_BP)


def logp_gap(inputs: ObjectiveInputs) -> PerQuery:
    """Gap log pi(p+|q) - log pi(p-|q), summed over tokens, in nats; mean over a query's pairs of passages.

    DPO and its kin widen it; up to a constant of the data it is ``reward_margin``.
    """
    assert inputs.logp_BP is not None
    return _gap(inputs.logp_BP, inputs)


def mean_logp_gap(inputs: ObjectiveInputs) -> PerQuery:
    """s_gen(q, p+) - s_gen(q, p-), in nats per token: the gap that the passages' lengths do not move."""
    return _gap(inputs.mean_logp_BP, inputs)


def reward_margin(inputs: ObjectiveInputs) -> PerQuery:
    """Gap log pi/ref(p+|q) - log pi/ref(p-|q), summed over tokens, in nats; mean over a query's pairs.

    Times beta it is DPO's implicit reward margin (Rafailov et al. 2023, section 4), which TRL logs as rewards/margins.
    """
    return _gap(_log_ratio_BP(inputs), inputs)


def reward_accuracy(inputs: ObjectiveInputs) -> PerQuery:
    """Share of a query's pairs whose positive has the higher log pi/ref; TRL's rewards/accuracies."""
    higher_BPP = (F.pairwise_margin(_log_ratio_BP(inputs)) > 0).double()
    positive_BP, negative_BP = _sides(inputs)
    return PerQuery(F.mean_over_pairs(higher_BPP, positive_BP, negative_BP), positive_BP.any(1) & negative_BP.any(1))


#: What ranks agreement is between.
BOTH_SPACES: frozenset[Need] = frozenset({"embedding", "logp"})
_LOGP: frozenset[Need] = frozenset({"logp"})
_REWARD: frozenset[Need] = frozenset({"logp", "reference"})

#: Every figure by the name under which it is logged.
DIAGNOSTICS: dict[str, Diagnostic] = {
    "rank_agreement": Diagnostic(BOTH_SPACES, rank_agreement),
    "logp_gap": Diagnostic(_LOGP, logp_gap),
    "mean_logp_gap": Diagnostic(_LOGP, mean_logp_gap),
    "reward_margin": Diagnostic(_REWARD, reward_margin),
    "reward_accuracy": Diagnostic(_REWARD, reward_accuracy),
}


def diagnostics_of(needs: Collection[Need], rank_agreement: bool | None = None) -> dict[str, Diagnostic]:
    """The figures that follow from what is computed anyway; ``rank_agreement=False`` leaves that one out."""
    left_out = {"rank_agreement"} if rank_agreement is False else set()
    return {n: d for n, d in DIAGNOSTICS.items() if d.needs <= frozenset(needs) and n not in left_out}


def sums(chosen: dict[str, Diagnostic], inputs: ObjectiveInputs) -> Tensor:
    """Sum over the counted queries and their number, of each figure, (figures, 2), float64."""
    found = [diagnostic.of(inputs) for diagnostic in chosen.values()]
    if not found:
        return torch.zeros(0, 2, dtype=torch.float64, device=inputs.passage_mask_BP.device)
    pairs = [torch.stack([torch.where(n_B, v_B.double(), 0.0).sum(), n_B.double().sum()]) for v_B, n_B in found]
    return torch.stack(pairs)


def kendall_tau(a_BP: Tensor, b_BP: Tensor, mask_BP: Tensor) -> PerQuery:
    """Kendall's tau-b of two sets of scores of each query's existing passages (Kendall 1945), (B,).

    tau_b = (concordant - discordant pairs) / sqrt(pairs untied in a * pairs untied in b); a query without an untied
    pair on either side has none.
    """
    pair_BPP = mask_BP[:, :, None] & mask_BP[:, None, :]
    sign_a_BPP = torch.where(pair_BPP, F.pairwise_margin(a_BP).sign(), 0.0).double()
    sign_b_BPP = torch.where(pair_BPP, F.pairwise_margin(b_BP).sign(), 0.0).double()
    untied_B = sign_a_BPP.abs().sum((1, 2)) * sign_b_BPP.abs().sum((1, 2))
    tau_B = (sign_a_BPP * sign_b_BPP).sum((1, 2)) / untied_B.clamp(min=1).sqrt()
    return PerQuery(tau_B, untied_B > 0)


def _sides(inputs: ObjectiveInputs) -> tuple[Tensor, Tensor]:
    """Positives and negatives of each query, both (B, P)."""
    return inputs.positive_mask_BP & inputs.passage_mask_BP, inputs.passage_mask_BP & ~inputs.positive_mask_BP


def _gap(value_BP: Tensor, inputs: ObjectiveInputs) -> PerQuery:
    positive_BP, negative_BP = _sides(inputs)
    gap_B = F.mean_where(value_BP, positive_BP, dim=1) - F.mean_where(value_BP, negative_BP, dim=1)
    return PerQuery(gap_B, positive_BP.any(1) & negative_BP.any(1))


def _log_ratio_BP(inputs: ObjectiveInputs) -> Tensor:  # noqa: N802 - the suffix is the shape
    assert inputs.logp_BP is not None and inputs.ref_logp_BP is not None
    return inputs.logp_BP - inputs.ref_logp_BP
