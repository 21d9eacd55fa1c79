"""The step's gradient is that of one autograd graph over the whole batch (float64, 1e-9)."""

from __future__ import annotations

from functools import partialmethod

import pytest
import torch

from tests.batches import random_batch
from tests.parity.float64 import in_float64
from tests.parity.oracle import forward_of, relative_error, step_gradient, whole_gradient
from tests.tiny import tiny_ullme
from ullme.data import with_mismatched
from ullme.objectives import PRESETS
from ullme.types import Batch, Texts

NO_DROPOUT = {"gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}, "mistral": {"sliding_window": 4}}
MODELS = ["llama", "gemma3_text", "gpt2", "mistral"]
ONE_QUERY = 1


def full_batch(queries: int, passages: int, seed: int, ragged: bool = False) -> Batch:
    """A batch with all that any preset needs."""
    return with_mismatched(random_batch(queries, passages, seed, generation=True, ragged=ragged))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models in float64 with LoRA, built once: without and with dropout, packed and padded."""
    folder = tmp_path_factory.mktemp("models")
    built = {}

    def get(model_type: str, dropout: float = 0.0, lora: bool = True, packing: bool = True):
        key = (model_type, dropout, lora, packing)
        if key not in built:
            changes = NO_DROPOUT.get(model_type, {})
            adapter = {"lora_name": "test", "lora_r": 4, "lora_dropout": dropout} if lora else {}
            built[key] = in_float64(tiny_ullme(folder, model_type, changes, packing=packing, **adapter)).train()
            assert built[key].switch.packs == packing
        return built[key]

    return get


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model_type", MODELS)
def test_gradient_does_not_depend_on_chunk_size(models, model_type, preset):
    model = models(model_type)
    batch = full_batch(6, 4, seed=3, ragged=True)
    right, loss = whole_gradient(model, batch, preset)
    seen = set()
    for budget in (ONE_QUERY, 150, 300, None):
        found, total, chunks = step_gradient(model, batch, preset, budget)
        assert relative_error(found, right) < 1e-9
        assert total == pytest.approx(loss, rel=1e-12)
        seen.add(chunks)
    assert {1, 6} <= seen and len(seen) > 2


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_gradient_does_not_depend_on_chunk_size_without_adapter(models, model_type):
    model = models(model_type, lora=False)
    batch = full_batch(5, 3, seed=4)
    right, _ = whole_gradient(model, batch, "grl_sft")
    for budget in (ONE_QUERY, 200, None):
        assert relative_error(step_gradient(model, batch, "grl_sft", budget)[0], right) < 1e-9


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model_type", MODELS)
def test_gradient_does_not_depend_on_packing(models, model_type, preset):
    packed, padded = models(model_type), models(model_type, packing=False)
    padded.load_state_dict(packed.state_dict())
    batch = full_batch(6, 4, seed=3, ragged=True)
    right, loss = whole_gradient(padded, batch, preset)
    for model, budget in ((packed, 150), (padded, 150)):
        found, total, _ = step_gradient(model, batch, preset, budget)
        assert relative_error(found, right) < 1e-9
        assert total == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("model_type", MODELS)
def test_gradient_does_not_depend_on_padding_side(models, model_type, monkeypatch):
    model = models(model_type, packing=False)
    batch = full_batch(5, 3, seed=5)
    right, _ = whole_gradient(model, batch, "grl")
    monkeypatch.setattr(Texts, "pad", partialmethod(Texts.pad, side="left"))
    for budget in (ONE_QUERY, 200, None):
        assert relative_error(step_gradient(model, batch, "grl", budget)[0], right) < 1e-9


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model_type", MODELS)
def test_replay_repeats_the_dropout_of_the_first_pass(models, model_type, preset):
    """Oracle: the same chunks under the same RNG states, graphs kept, one backward."""
    model = models(model_type, dropout=0.3)
    batch = full_batch(6, 3, seed=6, ragged=True)
    forward = forward_of(model, PRESETS[preset])
    for budget in (ONE_QUERY, 200, None):
        parts = []

        def recording(chunk, parts=parts):
            parts.append((chunk, torch.get_rng_state()))
            return forward(chunk)

        torch.manual_seed(11)
        found, total, _ = step_gradient(model, batch, preset, budget, forward=recording)
        right, loss = whole_gradient(model, batch, preset, parts)
        assert relative_error(found, right) < 1e-9
        assert total == pytest.approx(loss, rel=1e-12)


def test_dropout_changes_the_gradient_so_the_oracle_above_sees_it(models):
    model = models("llama", dropout=0.3)
    batch = full_batch(6, 3, seed=6)
    torch.manual_seed(1)
    first, _, _ = step_gradient(model, batch, "grl", ONE_QUERY)
    second, _, _ = step_gradient(model, batch, "grl", ONE_QUERY)
    assert relative_error(first, second) > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("model_type", MODELS)
def test_activation_checkpointing_changes_nothing(models, model_type, dropout):
    model = models(model_type, dropout)
    batch = full_batch(4, 3, seed=7)
    torch.manual_seed(2)
    right, _, _ = step_gradient(model, batch, "grl", 150)
    model.gradient_checkpointing_enable()
    try:
        torch.manual_seed(2)
        found, _, _ = step_gradient(model, batch, "grl", 150)
    finally:
        model.gradient_checkpointing_disable()
    assert relative_error(found, right) < 1e-9


def test_the_step_leaves_batch_and_random_state_as_its_chunks_demand(models):
    """However many chunks: the batch is untouched, and the generator advances by the chunk seeds alone."""
    model = models("llama", dropout=0.3)
    batch = full_batch(4, 3, seed=8)
    before = batch.query.ids_X.clone(), batch.passage_mask_BP.clone()
    torch.manual_seed(5)
    step_gradient(model, batch, "grl", ONE_QUERY)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    torch.randint(2**62, (4,))
    assert torch.equal(after, torch.get_rng_state())
    assert torch.equal(batch.query.ids_X, before[0]) and torch.equal(batch.passage_mask_BP, before[1])
