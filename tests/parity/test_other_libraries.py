"""Values and gradients equal those of libraries where the definitions coincide."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from ullme.objectives import DPO, Contrastive
from ullme.types import ObjectiveInputs

B, P, D = 6, 4, 16


def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    query_BD = torch.randn(B, D, generator=g, dtype=torch.float64).requires_grad_()
    return query_BD, torch.randn(B, P, D, generator=g, dtype=torch.float64).requires_grad_()


def objective_inputs(**tensors) -> ObjectiveInputs:
    positive_BP = torch.zeros(B, P, dtype=torch.bool)
    positive_BP[:, 0] = True
    return ObjectiveInputs(
        passage_mask_BP=torch.ones(B, P, dtype=torch.bool),
        positive_mask_BP=positive_BP,
        query_key_B=torch.arange(B),
        passage_key_BP=torch.arange(B * P).view(B, P),
        row_ids=("",) * B,
        **tensors,
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 0.3])
def test_info_nce_is_sentence_transformers_multiple_negatives_ranking(symmetric, temperature):
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"} if symmetric else {}
    theirs = MultipleNegativesRankingLoss(None, scale=1 / temperature, **both)
    query_BD, passage_BPD = embeddings()
    right = theirs.compute_loss_from_embeddings([query_BD, *passage_BPD.unbind(1)], None)
    ours = Contrastive(temperature=temperature, symmetric=symmetric)
    found = ours(objective_inputs(query_BD=query_BD, passage_BPD=passage_BPD)).mean()
    assert float(found) == pytest.approx(float(right), rel=1e-12)
    leaves = (query_BD, passage_BPD)
    for mine, other in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(right, leaves), strict=True):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-14)


def trl_dpo(logp_NT: torch.Tensor, ref_N: torch.Tensor, beta: float) -> torch.Tensor:
    """TRL's own ``_compute_loss`` on given token log-probabilities, chosen rows first."""
    dpo_trainer = pytest.importorskip("trl", reason="trl is not installed: pip install trl").DPOTrainer
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather=lambda value: value, gather_for_metrics=lambda value: value),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    rows, tokens = logp_NT.shape
    ones_NT = torch.ones(rows, tokens + 1, dtype=torch.long)
    chosen_N, rejected_N = ref_N.chunk(2)
    inputs = {
        "input_ids": ones_NT,
        "attention_mask": ones_NT,
        "completion_mask": ones_NT,
        "ref_chosen_logps": chosen_N,
        "ref_rejected_logps": rejected_N,
    }
    zeros_NT = torch.zeros_like(logp_NT)
    output = SimpleNamespace(log_probs=logp_NT, entropy=zeros_NT, mean_logits=zeros_NT, is_top1=zeros_NT.bool())
    return dpo_trainer._compute_loss(stub, lambda **_: output, inputs, False)


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_is_trls_averaged_over_every_negative(beta):
    g = torch.Generator().manual_seed(1)
    logp_BPT = (-3 * torch.rand(B, P, 5, generator=g, dtype=torch.float64)).requires_grad_()
    ref_BP = -15 * torch.rand(B, P, generator=g, dtype=torch.float64)
    tokens_BP = torch.full((B, P), 5)
    found = DPO(beta=beta)(objective_inputs(logp_BP=logp_BPT.sum(-1), ref_logp_BP=ref_BP, tokens_BP=tokens_BP))
    pairs = [(b, n) for b in range(B) for n in range(1, P)]
    rows_NT = torch.stack([logp_BPT[b, 0] for b, _ in pairs] + [logp_BPT[b, n] for b, n in pairs])
    ref_N = torch.stack([ref_BP[b, 0] for b, _ in pairs] + [ref_BP[b, n] for b, n in pairs])
    right = trl_dpo(rows_NT, ref_N, beta)
    assert float(found.mean()) == pytest.approx(float(right), rel=1e-12)
    mine, other = (torch.autograd.grad(loss, logp_BPT)[0] for loss in (found.mean(), right))
    assert torch.allclose(mine, other, rtol=1e-9, atol=1e-14)
