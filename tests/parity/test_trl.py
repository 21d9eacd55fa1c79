"""Preference objectives equal TRL's own code on given likelihoods, values and gradients."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.trl_bare import bare, differences, dpo_trainer, likelihoods, objective_inputs, pairs_of
from ullme.objectives import CPO, DPO, IPO, ORPO, Hinge, Objective, SimPO

pytest.importorskip("trl", reason="trl is not installed: pip install trl")
from trl.experimental.cpo import CPOTrainer  # noqa: E402 - after the skip
from trl.experimental.orpo import ORPOTrainer  # noqa: E402


def output_of(logp_NT: Tensor) -> SimpleNamespace:
    zeros_NT = torch.zeros_like(logp_NT)
    return SimpleNamespace(log_probs=logp_NT, entropy=zeros_NT, mean_logits=zeros_NT, is_top1=zeros_NT.bool())


def trl_dpo(trainer: Any, logp_BPT: Tensor, ref_BP: Tensor, scored_BPT: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """TRL's ``_compute_loss`` on given token log-probabilities: chosen rows first, after a prompt of one token."""
    chosen, rejected = [(b, 0) for b, _ in pairs], pairs
    rows = chosen + rejected
    mask_NT = torch.nn.functional.pad(torch.stack([scored_BPT[at] for at in rows]).long(), (1, 0))
    inputs = {
        "input_ids": torch.ones_like(mask_NT),
        "attention_mask": torch.ones_like(mask_NT),
        "completion_mask": mask_NT,
        "ref_chosen_logps": torch.stack([ref_BP[at] for at in chosen]),
        "ref_rejected_logps": torch.stack([ref_BP[at] for at in rejected]),
    }
    trainer.model, trainer.precompute_ref_logps = SimpleNamespace(training=True), True
    output = output_of(torch.stack([logp_BPT[at] for at in rows]))
    return trainer._compute_loss(lambda **_: output, inputs, False)


@pytest.mark.parametrize(
    ("objective", "loss_type"),
    [(DPO(beta=beta), "sigmoid") for beta in (0.1, 0.7, 3.0)]
    + [(DPO(beta=beta, length_normalised=True), "sigmoid_norm") for beta in (0.1, 2.0)]
    + [(IPO(beta=beta), "ipo") for beta in (0.1, 0.6)]
    + [(Hinge(beta=beta), "hinge") for beta in (0.1, 0.4)],
    ids=repr,
)
def test_log_ratio_objectives_are_trls_averaged_over_every_negative(objective, loss_type):
    logp_BPT, ref_BP, scored_BPT = likelihoods()
    found = objective(objective_inputs(logp_BPT, ref_BP, scored_BPT)).mean()
    right = trl_dpo(dpo_trainer(loss_type, objective.beta), logp_BPT, ref_BP, scored_BPT, pairs_of())
    assert max(differences(found, right, logp_BPT)) < 1e-12


@pytest.mark.parametrize("smoothing", [0.1, 0.3])
def test_dpos_label_smoothing_is_trls_of_single_pairs(smoothing):
    """TRL smooths labels in its ``aot`` loss, which for a single pair is the conservative DPO loss."""
    logp_BPT, ref_BP, scored_BPT = likelihoods()
    found = DPO(beta=0.5, label_smoothing=smoothing)(objective_inputs(logp_BPT, ref_BP, scored_BPT)).mean()
    trainer = dpo_trainer("aot", 0.5, label_smoothing=smoothing)
    right = [trl_dpo(trainer, logp_BPT, ref_BP, scored_BPT, [pair]) for pair in pairs_of()]
    assert max(differences(found, torch.stack(right).mean(), logp_BPT)) < 1e-12


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_cpo_and_simpo_are_trls_averaged_over_every_negative(beta, smoothing):
    logp_BPT, ref_BP, scored_BPT = likelihoods()
    x = objective_inputs(logp_BPT, ref_BP, scored_BPT)
    cases: list[tuple[Objective, str, Tensor]] = [
        (CPO(beta=beta, label_smoothing=smoothing, alpha=0), "sigmoid", x.logp_BP),
        (SimPO(beta=beta, label_smoothing=smoothing, gamma=0.8), "simpo", x.mean_logp_BP),
    ]
    for objective, loss_type, value_BP in cases:
        options = {"loss_type": loss_type, "beta": beta, "label_smoothing": smoothing}
        trainer = bare(CPOTrainer, alpha=0.0, simpo_gamma=0.8, **options)
        chosen_N = torch.stack([value_BP[b, 0] for b, _ in pairs_of()])
        rejected_N = torch.stack([value_BP[at] for at in pairs_of()])
        right = trainer.cpo_loss(chosen_N, rejected_N)[0].mean()
        assert max(differences(objective(x).mean(), right, logp_BPT)) < 1e-12


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpos_odds_ratio_is_trls_averaged_over_every_negative(beta):
    """TRL computes it in float32, whatever comes in."""
    logp_BPT, ref_BP, scored_BPT = likelihoods()
    x = objective_inputs(logp_BPT, ref_BP, scored_BPT)
    chosen_N = torch.stack([x.mean_logp_BP[b, 0] for b, _ in pairs_of()])
    rejected_N = torch.stack([x.mean_logp_BP[at] for at in pairs_of()])
    right = -bare(ORPOTrainer, beta=beta).odds_ratio_loss(chosen_N, rejected_N)[0].double().mean()
    found = ORPO(beta=beta)(x).mean() + x.mean_logp_BP[:, 0].mean()
    assert max(differences(found, right, logp_BPT)) < 1e-6
