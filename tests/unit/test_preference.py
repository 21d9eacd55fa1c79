"""Preference objectives against closed forms, values and gradients, in plain Python over one pair at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from ullme.objectives import CPO, DPO, IPO, KTO, ORPO, SFT, Hinge, Objective, SimPO
from ullme.types import ObjectiveInputs

B, P = 4, 5
Found = tuple[list[float], list[list[float]]]  # a loss per query, and its gradient at every log-likelihood


def inputs(positives: int = 1) -> ObjectiveInputs:
    """Random likelihoods; the second query lacks its last passage and the third has no negatives."""
    g = torch.Generator().manual_seed(positives)
    mask_BP = torch.ones(B, P, dtype=torch.bool)
    mask_BP[1, -1] = False
    mask_BP[2, positives:] = False
    positive_BP = torch.zeros(B, P, dtype=torch.bool)
    positive_BP[:, :positives] = True
    tokens_BP = torch.randint(1, 9, (B, P), generator=g) * mask_BP

    def likelihoods(low: float) -> torch.Tensor:
        return (low * tokens_BP * torch.rand(B, P, generator=g, dtype=torch.float64)).masked_fill(~mask_BP, 0)

    return ObjectiveInputs(
        passage_mask_BP=mask_BP,
        positive_mask_BP=positive_BP,
        query_key_B=torch.arange(B),
        passage_key_BP=torch.arange(B * P).view(B, P),
        row_ids=("",) * B,
        logp_BP=likelihoods(-4.0).requires_grad_(),
        ref_logp_BP=likelihoods(-4.0),
        tokens_BP=tokens_BP,
    )


def found(objective: Objective, x: ObjectiveInputs) -> Found:
    """Losses, and the gradient of their sum at the summed log-likelihoods."""
    loss_B = objective(x)
    return loss_B.tolist(), torch.autograd.grad(loss_B.sum(), x.logp_BP)[0].tolist()


def close(values: Found, right: Found) -> bool:
    pairs = [(np.array(value), np.array(other)) for value, other in zip(values, right, strict=True)]
    return all(np.allclose(value, other, rtol=1e-12, atol=1e-14) for value, other in pairs)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@dataclass(frozen=True)
class Form:
    """What is compared of a passage (log-likelihood, reference's, tokens), what a margin costs; with derivatives."""

    value: Callable[[float, float, int], float]
    slope: Callable[[float, float, int], float]
    loss: Callable[[float], float]
    change: Callable[[float], float]
    likelihood: float = 0.0  # weight of the positives' negative log-likelihood


def logistic(scale: float, offset: float = 0.0, wrong: float = 0.0):
    """-log sigmoid(scale * m - offset), with a probability that the label is wrong, and its derivative."""

    def loss(m: float) -> float:
        x = scale * m - offset
        return (1 - wrong) * math.log(1 + math.exp(-x)) + wrong * math.log(1 + math.exp(x))

    def change(m: float) -> float:
        x = scale * m - offset
        return scale * (-(1 - wrong) * sigmoid(-x) + wrong * sigmoid(x))

    return loss, change


RATIO = (lambda logp, ref, n: logp - ref, lambda logp, ref, n: 1.0)
MEAN_RATIO = (lambda logp, ref, n: (logp - ref) / n, lambda logp, ref, n: 1 / n)
SUM = (lambda logp, ref, n: logp, lambda logp, ref, n: 1.0)
MEAN = (lambda logp, ref, n: logp / n, lambda logp, ref, n: 1 / n)
ODDS = (
    lambda logp, ref, n: math.log(math.exp(logp / n) / (1 - math.exp(logp / n))),
    lambda logp, ref, n: 1 / (1 - math.exp(logp / n)) / n,
)


def ipo(beta: float):
    return lambda m: (m - 1 / (2 * beta)) ** 2, lambda m: 2 * (m - 1 / (2 * beta))


def hinge(beta: float):
    return lambda m: max(0.0, 1 - beta * m), lambda m: -beta if beta * m < 1 else 0.0


def odds_loss(beta: float):
    loss, change = logistic(1.0)
    return lambda m: beta * loss(m), lambda m: beta * change(m)


CASES = [
    (DPO(), Form(*RATIO, *logistic(0.1))),
    (DPO(beta=0.7), Form(*RATIO, *logistic(0.7))),
    (DPO(beta=0.7, label_smoothing=0.2), Form(*RATIO, *logistic(0.7, wrong=0.2))),
    (DPO(beta=2.0, length_normalised=True), Form(*MEAN_RATIO, *logistic(2.0))),
    (IPO(), Form(*MEAN_RATIO, *ipo(0.1))),
    (IPO(beta=0.6, length_normalised=False), Form(*RATIO, *ipo(0.6))),
    (Hinge(), Form(*RATIO, *hinge(0.1))),
    (Hinge(beta=0.9, length_normalised=True), Form(*MEAN_RATIO, *hinge(0.9))),
    (CPO(), Form(*SUM, *logistic(0.1), likelihood=1.0)),
    (CPO(beta=0.4, alpha=0.3, label_smoothing=0.1), Form(*SUM, *logistic(0.4, wrong=0.1), likelihood=0.3)),
    (CPO(alpha=0.0, length_normalised=True), Form(*MEAN, *logistic(0.1))),
    (SimPO(), Form(*MEAN, *logistic(2.0, 0.5))),
    (SimPO(beta=3.0, gamma=1.1, label_smoothing=0.2), Form(*MEAN, *logistic(3.0, 1.1, 0.2))),
    (ORPO(), Form(*ODDS, *odds_loss(0.1), likelihood=1.0)),
    (ORPO(beta=0.8), Form(*ODDS, *odds_loss(0.8), likelihood=1.0)),
]


def closed_form(form: Form, x: ObjectiveInputs) -> Found:
    """The mean over every pair, and the mean likelihood of the positives, pair by pair and passage by passage."""
    logp, ref, tokens = x.logp_BP.tolist(), x.ref_logp_BP.tolist(), x.tokens_BP.tolist()
    losses, gradient = [0.0] * B, [[0.0] * P for _ in range(B)]
    for b in range(B):
        present = [p for p in range(P) if x.passage_mask_BP[b, p]]
        good = [p for p in present if x.positive_mask_BP[b, p]]
        bad = [p for p in present if not x.positive_mask_BP[b, p]]
        for i in good:
            losses[b] -= form.likelihood * logp[b][i] / tokens[b][i] / len(good)
            gradient[b][i] -= form.likelihood / tokens[b][i] / len(good)
            for j in bad:
                of_i, of_j = ((logp[b][p], ref[b][p], tokens[b][p]) for p in (i, j))
                margin, share = form.value(*of_i) - form.value(*of_j), 1 / (len(good) * len(bad))
                losses[b] += form.loss(margin) * share
                gradient[b][i] += form.change(margin) * form.slope(*of_i) * share
                gradient[b][j] -= form.change(margin) * form.slope(*of_j) * share
    return losses, gradient


@pytest.mark.parametrize("positives", [1, 2])
@pytest.mark.parametrize(("objective", "form"), CASES, ids=[repr(objective) for objective, _ in CASES])
def test_loss_and_gradient_are_the_mean_over_every_pair(objective, form, positives):
    x = inputs(positives)
    assert close(found(objective, x), closed_form(form, x))


@pytest.mark.parametrize("objective", [DPO(), IPO(), Hinge(), SimPO(), CPO(), ORPO()], ids=lambda o: o.type)
def test_a_query_without_negatives_keeps_its_likelihood_and_nothing_else(objective):
    x = inputs()
    loss, right = (float(kind(x)[2].detach()) for kind in (objective, SFT()))
    assert loss == (0.0 if objective.needs_negatives else pytest.approx(right, rel=1e-12))
    assert objective.needs_negatives == (objective.type not in ("cpo", "orpo"))


# ---- KTO ----


def kto_closed_form(objective: KTO, x: ObjectiveInputs, mismatched: list[float]) -> Found:
    """Each query's share of the mean over all passages, times the queries: the mean over queries is that mean."""
    z = max(0.0, sum(mismatched) / len(mismatched)) if mismatched else 0.0
    ratio = (x.logp_BP - x.ref_logp_BP).tolist()
    passages = int(x.passage_mask_BP.sum())
    losses, gradient = [0.0] * B, [[0.0] * P for _ in range(B)]
    for b in range(B):
        for p in range(P):
            if x.passage_mask_BP[b, p]:
                sign = 1 if x.positive_mask_BP[b, p] else -1
                side = objective.desirable_weight if sign > 0 else objective.undesirable_weight
                value = sigmoid(objective.beta * sign * (ratio[b][p] - z))
                losses[b] += side * (1 - value) * B / passages
                gradient[b][p] -= side * objective.beta * sign * value * (1 - value) * B / passages
    return losses, gradient


def with_totals(objective: KTO, x: ObjectiveInputs, ratio: list[list[float]]) -> ObjectiveInputs:
    """Inputs that know the sums over the batch, of which every number in ``ratio`` is a mismatched log-ratio."""
    width = max(len(row) for row in ratio)
    padded = torch.tensor([[*row, *[9.0] * (width - len(row))] for row in ratio], dtype=torch.float64)
    tokens = torch.tensor([[2] * len(row) + [0] * (width - len(row)) for row in ratio])
    mismatched = {"mismatched_logp_BP": padded - 3.0, "mismatched_ref_logp_BP": torch.full_like(padded, -3.0)}
    x = replace(x, **mismatched, mismatched_tokens_BP=tokens)
    return replace(x, totals_S=objective.sums_BS(x).sum(0))


@pytest.mark.parametrize("objective", [KTO(), KTO(beta=0.6, desirable_weight=1.3, undesirable_weight=0.4)], ids=repr)
@pytest.mark.parametrize(
    "ratio",
    [
        [[0.5, 2.0, -0.3], [1.0], [], [0.2, 0.4]],  # z > 0, one of them has none
        [[-0.5, -2.0], [0.1], [0.3], [-1.0]],  # z < 0, cut off
        [[], [], [], [0.0]],
    ],
)
def test_kto_is_the_mean_over_all_passages_against_the_mean_of_the_mismatched(objective, ratio):
    x = with_totals(objective, inputs(2), ratio)
    right = kto_closed_form(objective, x, [value for row in ratio for value in row])
    assert close(found(objective, x), right)


def test_kto_without_anything_mismatched_measures_from_the_reference():
    x = with_totals(KTO(), inputs(), [[1.0]] * B)
    x = replace(x, mismatched_tokens_BP=torch.zeros(B, 1))
    x = replace(x, totals_S=KTO().sums_BS(x).sum(0))
    assert close(found(KTO(), x), kto_closed_form(KTO(), x, []))


def test_no_gradient_enters_the_divergence():
    x = with_totals(KTO(), inputs(), [[1.0]] * B)
    leaf = x.totals_S.clone().requires_grad_()
    loss = KTO()(replace(x, totals_S=leaf)).sum()
    assert torch.autograd.grad(loss, leaf, allow_unused=True)[0] is None
