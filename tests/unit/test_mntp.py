"""Masked next-token prediction: its closed form, its gradient through the step, and what it trains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.batches import random_batch
from tests.parity.float64 import in_float64
from tests.parity.oracle import forward_of, relative_error, step_gradient, whole_gradient
from tests.tiny import tiny_tokenizer, tiny_ullme
from ullme.data import PairCollator, TokenMasking
from ullme.models import ULLME
from ullme.objectives import MNTP, PRESETS, Contrastive, objectives_from
from ullme.trainer.freezing import only_reached_trainable
from ullme.types import IGNORED, MaskedTexts, PairExample

ALONE = (MNTP(),)
JOINT = (MNTP(weight=0.7), Contrastive())
NO_DROPOUT = {"gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    folder, built = tmp_path_factory.mktemp("models"), {}

    def get(model_type: str = "llama", dropout: float = 0.0) -> ULLME:
        if (model_type, dropout) not in built:
            settings = {"lora_name": "test", "lora_r": 4, "lora_dropout": dropout}
            model = tiny_ullme(folder, model_type, NO_DROPOUT.get(model_type), **settings)
            built[model_type, dropout] = in_float64(model).train()
        return built[model_type, dropout]

    return get


def bidirectional_logits(model: ULLME, ids: torch.Tensor) -> torch.Tensor:
    """Logits (T, V) of one text, straight from Transformers."""
    return model.causal_lm(input_ids=ids[None], is_causal=False, use_cache=False).logits[0]


def texts_of(masked: MaskedTexts) -> list[tuple[torch.Tensor, torch.Tensor]]:
    lengths = masked.texts.lengths_N.tolist()
    return list(zip(masked.texts.ids_X.split(lengths), masked.target_X.split(lengths), strict=True))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3"])
def test_loss_is_the_cross_entropy_of_bidirectional_logits_shifted_by_one(model_of, model_type):
    model = model_of(model_type)
    batch = random_batch(5, 2, seed=1, generation=True)
    loss_B = MNTP()(model(batch=batch, needs={"masked"}))
    for loss, (ids, target) in zip(loss_B, texts_of(batch.masked), strict=True):
        logits = bidirectional_logits(model, ids)
        shifted = cross_entropy(logits[:-1], target[1:], ignore_index=IGNORED)
        own = cross_entropy(logits, target, ignore_index=IGNORED)
        assert loss.item() == pytest.approx(shifted.item(), rel=1e-9)
        assert abs(loss.item() - own.item()) > 1e-5  # the hidden token does not predict itself


def test_loss_is_that_of_transformers_given_its_labels(model_of):
    """Transformers' own loss shifts labels by one; equal numbers of hidden tokens make its mean equal to ours."""
    model = model_of()
    masked = random_batch(4, 1, seed=2, generation=True).masked
    same = torch.tensor([n for n, (_, t) in enumerate(texts_of(masked)) if (t != IGNORED).sum() == 2])
    assert len(same) > 1
    batch = replace(random_batch(len(same), 1, seed=3), masked=masked.rows(same))
    loss = MNTP()(model(batch=batch, needs={"masked"})).mean()
    theirs = [
        model.causal_lm(input_ids=i[None], labels=t[None], is_causal=False, use_cache=False).loss
        for i, t in texts_of(batch.masked)
    ]
    assert loss.item() == pytest.approx(torch.stack(theirs).mean().item(), rel=1e-6)


def test_a_late_token_decides_an_early_prediction_under_bidirectional_attention_alone(model_of, tmp_path):
    causal = in_float64(tiny_ullme(tmp_path, attention="causal"))
    batch = random_batch(1, 1, seed=4, generation=True)
    (ids, target), *_ = texts_of(batch.masked)
    target = torch.where(torch.arange(len(target)) == 1, target, IGNORED)
    ids_late = ids.clone()
    ids_late[-1] = ids[-1] + 1 if ids[-1] < 300 else 3
    for model, same in ((model_of(), False), (causal, True)):
        logp = [
            model.score_masked(MaskedTexts(replace(batch.masked.texts, ids_X=i), target))[0] for i in (ids, ids_late)
        ]
        assert torch.allclose(*logp, rtol=1e-9, atol=0) == same


def test_every_text_counts_the_same_however_much_of_it_is_hidden(model_of):
    model = model_of()
    batch = random_batch(4, 1, seed=5, generation=True)
    together = MNTP()(model(batch=batch, needs={"masked"}))
    alone = [MNTP()(model(batch=batch.rows([b]), needs={"masked"})) for b in range(4)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-9)
    order = [2, 0, 3, 1]
    assert torch.allclose(MNTP()(model(batch=batch.rows(order), needs={"masked"})), together[order], rtol=1e-9)


def test_a_text_without_a_hidden_token_has_no_loss_and_no_gradient(model_of):
    model = model_of()
    batch = random_batch(2, 1, seed=6, generation=True)
    none = MaskedTexts(batch.masked.texts, torch.full_like(batch.masked.target_X, IGNORED))
    loss_B = MNTP()(model(batch=replace(batch, masked=none), needs={"masked"}))
    assert loss_B.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("objectives", [ALONE, JOINT], ids=["alone", "with contrast"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_gradient_does_not_depend_on_chunks(model_of, model_type, objectives):
    model = model_of(model_type)
    batch = random_batch(6, 2, seed=7, generation=True, ragged=True)
    right, loss = whole_gradient(model, batch, objectives)
    for budget in (1, 80, 200, None):
        found, total, _ = step_gradient(model, batch, objectives, budget)
        assert relative_error(found, right) < 1e-9
        assert total == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("objectives", [ALONE, JOINT], ids=["alone", "with contrast"])
def test_gradient_is_that_of_the_replayed_dropout(model_of, objectives, checkpointing):
    model = model_of(dropout=0.3)
    batch = random_batch(5, 2, seed=8, generation=True)
    forward, parts = forward_of(model, objectives), []

    def recording(chunk):
        parts.append((chunk, torch.get_rng_state()))
        return forward(chunk)

    if checkpointing:
        model.gradient_checkpointing_enable()
    try:
        torch.manual_seed(3)
        found, total, chunks = step_gradient(model, batch, objectives, 60, forward=recording)
    finally:
        model.gradient_checkpointing_disable()
    right, loss = whole_gradient(model, batch, objectives, parts)
    assert chunks > 1 and relative_error(found, right) < 1e-9 and total == pytest.approx(loss, rel=1e-12)


def test_masked_tokens_reach_the_lm_head_and_no_pooler(tmp_path):
    model = tiny_ullme(tmp_path, changes={"tie_word_embeddings": False}, pooling="latent")
    head = model.causal_lm.get_output_embeddings().weight
    with only_reached_trainable(model, MNTP.needs):
        assert head.requires_grad and not any(p.requires_grad for p in model.pooler.parameters())
        step_gradient(model, random_batch(2, 1, seed=9, generation=True), ALONE, None)
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    with only_reached_trainable(model, Contrastive.needs):
        assert not head.requires_grad and all(p.requires_grad for p in model.pooler.parameters())


def test_collated_texts_train_through_the_objective(model_of):
    tokenizer = tiny_tokenizer()
    masking = TokenMasking.for_tokenizer(tokenizer, 0.3, "_", "all")
    collator = PairCollator(model_of().text_tokenizer, masking=masking)
    text = "a text is its own positive"
    batch = collator([PairExample(text, (text,), row_id="r")])
    inputs = model_of()(batch=batch, needs={"masked"})
    assert inputs.masked_tokens_B.item() == (batch.masked.target_X != IGNORED).sum() > 0
    assert torch.isfinite(MNTP()(inputs)).all()


def test_a_batch_without_hidden_tokens_is_refused_with_the_cure(model_of):
    with pytest.raises(ValueError, match="give PairCollator a masking"):
        model_of()(batch=random_batch(1, 1, seed=0), needs={"masked"})


def test_defaults_are_those_of_llm2vec_for_llama():
    (preset,) = PRESETS["mntp"]
    assert (preset.mask_probability, preset.mask_token, preset.replacement) == (0.2, "_", "bert")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"mask_probability": 0}, "mntp.mask_probability"),
        ({"mask_probability": 1.5}, "mntp.mask_probability"),
        ({"mask_token": ""}, "mntp.mask_token"),
        ({"replacement": "some"}, "mntp.replacement"),
        ({"mask_probabilty": 0.2}, "did you mean 'mask_probability'"),
    ],
)
def test_a_wrong_option_is_named(option, said):
    with pytest.raises(ValueError, match=said):
        objectives_from({"type": "mntp", **option})
