"""Preference objectives on a tiny model's likelihoods equal what TRL computes with that model from token ids."""

from __future__ import annotations

from dataclasses import replace
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.batches import random_batch
from tests.parity.float64 import in_float64
from tests.parity.trl_bare import B, P, bare, differences, dpo_trainer, pairs_of, rows_of
from tests.tiny import tiny_ullme
from ullme.data import with_mismatched
from ullme.objectives import CPO, DPO, IPO, KTO, ORPO, Hinge, SimPO
from ullme.types import Batch

pytest.importorskip("trl", reason="trl is not installed: pip install trl")
from trl import KTOTrainer  # noqa: E402 - after the skip
from trl.experimental.cpo import CPOTrainer  # noqa: E402
from trl.experimental.orpo import ORPOTrainer  # noqa: E402
from trl.trainer.utils import add_fused_lm_head  # noqa: E402


def fused(causal_lm: Any) -> None:
    """TRL's own head, which computes in float32 whatever the model's dtype."""
    add_fused_lm_head(causal_lm, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))


def plain(causal_lm: Any) -> None:
    """The same outputs from the model's plain logits, in its dtype."""
    forward = causal_lm.forward

    def scored(_: Any, *, labels: Tensor, fused_lm_head: bool, **inputs: Any) -> SimpleNamespace:
        assert fused_lm_head
        logp_NTV = forward(**inputs).logits[:, :-1].log_softmax(-1)
        target_NT = labels[:, 1:]
        logp_NT = logp_NTV.gather(-1, target_NT.clamp(min=0)[..., None])[..., 0].masked_fill(target_NT < 0, 0)
        zeros_NT = torch.zeros_like(logp_NT)
        return SimpleNamespace(log_probs=logp_NT, entropy=zeros_NT, mean_logits=zeros_NT, is_top1=zeros_NT.bool())

    causal_lm.forward = MethodType(scored, causal_lm)


#: How TRL is told to score tokens, and how far it may then be from ullme in float64.
HEADS = [(fused, 1e-5), (plain, 1e-12)]


@pytest.fixture
def model(tmp_path):
    """A llama with LoRA in float64; the adapter has moved it, so that the reference is another model."""
    return in_float64(tiny_ullme(tmp_path, "llama", lora_name="test", lora_r=4)).eval()


def trainable(model: Any) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize(("head", "tolerance"), HEADS)
@pytest.mark.parametrize("objective", [DPO(), DPO(beta=2.0), IPO(), Hinge(beta=0.5)], ids=repr)
def test_dpo_on_a_models_own_likelihoods_is_what_trl_computes_with_that_model(model, objective, head, tolerance):
    """TRL runs the model and its reference itself, from token ids."""
    batch = random_batch(B, P, seed=3, generation=True)
    found = objective(model(batch=batch, needs=objective.needs)).mean()
    rows = [b * P for b, _ in pairs_of()] + [b * P + n for b, n in pairs_of()]
    inputs = rows_of(batch.generation, rows)
    loss_type = {"dpo": "sigmoid"}.get(objective.type, objective.type)
    trainer = dpo_trainer(loss_type, objective.beta, model=model.peft_model, precompute_ref_logps=False)
    head(model.causal_lm)
    right = trainer._compute_loss(model.peft_model, inputs, False)
    assert max(differences(found, right, trainable(model))) < tolerance


@pytest.mark.parametrize(("head", "tolerance"), HEADS)
@pytest.mark.parametrize("sides", [(1.0, 1.0), (1.3, 0.4)])
@pytest.mark.parametrize("beta", [0.1, 1.5])
def test_kto_on_a_models_own_likelihoods_is_what_trl_computes_with_that_model(model, beta, sides, head, tolerance):
    """The mean over queries is TRL's mean over passages, with ragged negatives and the mismatched pairs' divergence."""
    objective = KTO(beta=beta, desirable_weight=sides[0], undesirable_weight=sides[1])
    batch = with_mismatched(random_batch(B, P, seed=5, generation=True, ragged=True))
    with torch.no_grad():
        totals_S = objective.sums_BS(model(batch=batch, needs=objective.measures)).sum(0)
    assert totals_S[0] > 0.01
    found = objective(replace(model(batch=batch, needs=objective.needs), totals_S=totals_S)).mean()
    present = batch.passage_mask_BP.flatten().nonzero().flatten().tolist()
    mismatched = batch.mismatched.lengths_N.nonzero().flatten().tolist()
    inputs = rows_of(batch.generation, present)
    inputs |= {f"KL_{name}": value for name, value in rows_of(batch.mismatched, mismatched).items()}
    inputs["label"] = batch.positive_mask_BP.flatten()[present]
    options = {"loss_type": "kto", "beta": beta, "desirable_weight": sides[0], "undesirable_weight": sides[1]}
    own = {"model": model.peft_model, "precompute_ref_logps": False, "calculate_KL": True}
    head(model.causal_lm)
    right = bare(KTOTrainer, **options, **own)._compute_loss(model.peft_model, inputs, False)
    assert max(differences(found, right, trainable(model))) < tolerance


def pair_inputs(batch: Batch, b: int, n: int) -> dict[str, Tensor]:
    """A query's positive and its n-th negative, as TRL's paired collator gives them."""
    sides = {"chosen": rows_of(batch.generation, [b * P]), "rejected": rows_of(batch.generation, [b * P + n])}
    inputs = {f"{side}_{name}": value for side, values in sides.items() for name, value in values.items()}
    for side, values in sides.items():
        inputs[f"{side}_labels"] = values["input_ids"].masked_fill(values["completion_mask"] == 0, -100)
    return inputs


@pytest.mark.parametrize(
    "objective", [CPO(), CPO(beta=0.4, alpha=0.3, label_smoothing=0.1), SimPO(), SimPO(beta=3, gamma=1)], ids=repr
)
def test_cpo_with_its_likelihood_is_what_trl_computes_with_that_model(model, objective):
    """Pair by pair, since TRL pools the tokens of a batch's positives."""
    batch = random_batch(B, P, seed=5, generation=True)
    found = objective(model(batch=batch, needs=objective.needs)).mean()
    alpha, gamma = getattr(objective, "alpha", 0.0), getattr(objective, "gamma", 0.0)
    options = {"beta": objective.beta, "cpo_alpha": alpha, "simpo_gamma": gamma, "alpha": 0.0, "pad_token_id": 0}
    kind = {"cpo": "sigmoid"}.get(objective.type, objective.type)
    smoothing = objective.label_smoothing
    trainer = bare(CPOTrainer, loss_type=kind, label_smoothing=smoothing, **options)
    losses = [trainer.get_batch_loss_metrics(model.peft_model, pair_inputs(batch, *pair))[0] for pair in pairs_of()]
    assert max(differences(found, torch.stack(losses).mean(), trainable(model))) < 1e-12


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpo_is_trls_but_for_the_prompt_which_trl_scores_too(model, beta):
    batch = random_batch(B, P, seed=5, generation=True)
    found = ORPO(beta=beta)(model(batch=batch, needs={"logp"})).mean()
    trainer = bare(ORPOTrainer, beta=beta, padding_value=0, model=model.peft_model)
    losses = []
    for pair in pairs_of():
        inputs = pair_inputs(batch, *pair)
        chosen_N, rejected_N, *_, prompt_too = trainer.concatenated_forward(model.peft_model, inputs)
        full = model(input_ids=inputs["chosen_input_ids"], labels=inputs["chosen_input_ids"], is_generate=True).loss
        assert float(prompt_too.detach()) == pytest.approx(float(full.detach()), rel=1e-6)
        losses.append(-chosen_N.mean() - trainer.odds_ratio_loss(chosen_N, rejected_N)[0].mean())
    assert max(differences(found, torch.stack(losses).mean(), trainable(model))) < 1e-6
