"""TRL's trainers without their constructors, and what they and ullme's objectives are both given."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ullme.types import ObjectiveInputs, Texts

B, P, T = 5, 4, 6


def likelihoods() -> tuple[Tensor, Tensor, Tensor]:
    """Token log-probabilities (B, P, T) of passages of unequal length, the reference's sums, and which tokens exist."""
    g = torch.Generator().manual_seed(1)
    lengths_BP = torch.randint(1, T + 1, (B, P), generator=g)
    scored_BPT = torch.arange(T) < lengths_BP[..., None]
    logp_BPT = (-3 * torch.rand(B, P, T, generator=g, dtype=torch.float64)).masked_fill(~scored_BPT, 0)
    ref_BP = -3 * lengths_BP * torch.rand(B, P, generator=g, dtype=torch.float64)
    return logp_BPT.requires_grad_(), ref_BP, scored_BPT


def objective_inputs(logp_BPT: Tensor, ref_BP: Tensor, scored_BPT: Tensor) -> ObjectiveInputs:
    """The inputs of queries with one positive each, before their negatives."""
    positive_BP = torch.zeros(B, P, dtype=torch.bool)
    positive_BP[:, 0] = True
    return ObjectiveInputs(
        passage_mask_BP=torch.ones(B, P, dtype=torch.bool),
        positive_mask_BP=positive_BP,
        query_key_B=torch.arange(B),
        passage_key_BP=torch.arange(B * P).view(B, P),
        row_ids=("",) * B,
        logp_BP=logp_BPT.sum(-1),
        ref_logp_BP=ref_BP,
        tokens_BP=scored_BPT.sum(-1),
    )


def pairs_of() -> list[tuple[int, int]]:
    """Every query with every one of its negatives; the positive is passage 0."""
    return [(b, n) for b in range(B) for n in range(1, P)]


def rows_of(texts: Texts, rows: list[int]) -> dict[str, Tensor]:
    """These texts as TRL's collators give them: padded ids, what is real, and what is completion."""
    part = texts.rows(rows)
    ids_NT, mask_NT = part.pad(0)
    return {"input_ids": ids_NT, "attention_mask": mask_NT, "completion_mask": part.scored_NT(mask_NT).long()}


def trl() -> Any:
    """The library, where it is installed."""
    return pytest.importorskip("trl", reason="trl is not installed: pip install trl")


def bare(kind: type, **attributes: Any) -> Any:
    """A TRL trainer with all its methods and, in place of what its constructor makes, what they read."""
    trainer = object.__new__(kind)
    accelerator = SimpleNamespace(
        device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    shared = {
        "accelerator": accelerator,
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None),
        "aux_loss_enabled": False,
        "is_encoder_decoder": False,
        "label_smoothing": 0.0,
        "ref_model": None,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    trainer.__dict__.update(shared | attributes)
    return trainer


def dpo_trainer(loss_type: str, beta: float, **attributes: Any) -> Any:
    own = {"loss_types": [loss_type], "loss_weights": [1.0], "beta": beta, "use_weighting": False, "ld_alpha": None}
    return bare(trl().DPOTrainer, **own, f_divergence_type="reverse_kl", **attributes)


def differences(found: Tensor, right: Tensor, leaves: Any) -> tuple[float, float]:
    """Relative difference of two losses, and of their gradients (norm over norm, all leaves together)."""
    value = float((found - right).detach().abs() / right.detach().abs())
    parts = [torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True) for loss in (found, right)]
    mine, other = (torch.cat([gradient.flatten() for gradient in part]) for part in parts)
    assert other.any(), "nothing learns"
    return value, float((mine - other).norm() / other.norm())
