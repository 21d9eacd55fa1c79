"""Values and gradients equal those of libraries where the definitions coincide."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from ullme.objectives import Contrastive
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
        query_key_B=torch.arange(B) + 1_000,  # of no passage
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
