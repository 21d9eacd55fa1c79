"""The memory plan: what it counts without weights is what the same code holds with them."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from tests.tiny import tiny_config, tiny_ullme
from ullme.apps import plan_memory
from ullme.apps.plan_memory import LargestStep, memory_plan
from ullme.apps.plan_model import planned_model
from ullme.apps.plan_trace import chunk_memory, merged
from ullme.config import RunConfig
from ullme.models.half import HalfWeights
from ullme.models.inputs import objective_inputs
from ullme.types import Batch, Texts

NEEDS = frozenset({"embedding", "logp", "reference"})
WIDE = {"hidden_size": 64, "intermediate_size": 128}


def chunk(queries: int = 2, passages: int = 3, query: int = 6, passage: int = 20) -> Batch:
    """Queries with passages of these lengths."""
    mask_BP = torch.ones(queries, passages, dtype=torch.bool)
    count = queries * passages
    context = [list(range(3 + b, 3 + b + query)) for b in range(queries) for _ in range(passages)]
    return Batch(
        query=Texts.from_lists([[5] * query] * queries),
        passage=Texts.from_lists([[7] * passage] * count),
        generation=Texts.from_lists([c + [7] * passage for c in context], [query] * count),
        passage_mask_BP=mask_BP,
        positive_mask_BP=mask_BP & (torch.arange(passages) == 0),
        query_key_B=torch.arange(queries),
        passage_key_BP=torch.arange(count).view(queries, passages) + 100,
        row_ids=tuple(map(str, range(queries))),
    )


def kept_by_a_real_model(model, batch: Batch, autocast: torch.dtype | None) -> int:
    """Bytes of what autograd holds of a chunk, the parameters and their copies left out."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    half = HalfWeights(model, autocast) if autocast is not None else None
    with half.used() if half is not None else nullcontext():
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast("cpu", autocast) if autocast is not None else nullcontext():
                inputs = objective_inputs(model, batch, NEEDS)
        assert inputs.logp_BP is not None
        return sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
def test_what_is_kept_without_weights_is_what_a_real_model_keeps(tmp_path, kind, autocast):
    real = tiny_ullme(tmp_path, kind, WIDE if kind == "llama" else None, lora_name="a", lora_dropout=0.2).train()
    planned = planned_model(real.settings, real.config)
    found = chunk_memory(planned, chunk(), NEEDS, autocast, half=True, alone=True)
    right = kept_by_a_real_model(real, chunk(), autocast)
    assert right * 0.95 <= found.kept <= right * 1.1  # beside what autograd holds, what Python does: embeddings, losses
    assert found.peak >= found.kept


def test_a_fake_models_weights_are_a_real_ones(tmp_path):
    real = tiny_ullme(tmp_path, "gemma3_text", lora_name="a", pooling="latent", dtype="bfloat16")
    planned = planned_model(real.settings, real.config)
    described = [{n: (p.shape, p.dtype, p.requires_grad) for n, p in m.named_parameters()} for m in (real, planned)]
    assert described[0] == described[1]


def memory(tmp_path, passage: int = 20, alone: bool = False, model: dict | None = None, **trainer):
    run = {
        "model": {"name_or_path": "planned", "lora": {"r": 2}, **(model or {})},
        "data": {"train": [{"path": "pairs.jsonl"}]},
        "objectives": trainer.pop("objectives", "grl"),
        "trainer": {"output_dir": str(tmp_path), **trainer},
    }
    step = LargestStep(chunk(passage=passage), alone, queries=8, passages=24)
    return memory_plan(RunConfig.model_validate(run), tiny_config("llama"), step)


def test_activations_grow_with_tokens_and_weights_do_not(tmp_path):
    short, long = memory(tmp_path, 20).sizes, memory(tmp_path, 40).sizes
    assert 1.5 < long["activations"] / short["activations"] < 2.1
    same = ("weights", "gradients", "optimizer (Adam)", "embeddings and their gradients")
    assert all(short[name] == long[name] for name in same)


def test_recomputation_keeps_less(tmp_path):
    plain, recomputed = memory(tmp_path).sizes, memory(tmp_path, gradient_checkpointing=True).sizes
    assert recomputed["activations"] < 0.7 * plain["activations"]


def test_mixed_precision_keeps_less_and_holds_copies_of_frozen_matrices(tmp_path):
    plain, mixed = memory(tmp_path).sizes, memory(tmp_path, bf16=True).sizes
    assert mixed["activations"] < 0.8 * plain["activations"]
    assert 0 < mixed["half-precision copies"] < mixed["weights"]
    assert "half-precision copies" not in plain


def test_full_fine_tuning_has_a_gradient_and_two_moments_of_every_weight(tmp_path):
    plan = memory(tmp_path, objectives="grl_sft", model={"lora": None})
    assert plan.sizes["gradients"] == plan.sizes["weights"] == 4 * plan.parameters[0]
    assert plan.sizes["optimizer (Adam)"] == 8 * plan.parameters[1]


def test_a_head_that_no_objective_reaches_has_no_gradient(tmp_path):
    plan = memory(tmp_path, objectives="contrastive", model={"lora": None})
    head = 384 * 32
    assert plan.sizes["gradients"] == 4 * (plan.parameters[1] - head)


def test_sharding_divides_weights_gradients_and_optimizer(tmp_path, monkeypatch):
    whole = memory(tmp_path).sizes
    monkeypatch.setenv("WORLD_SIZE", "4")
    copied, sharded = memory(tmp_path), memory(tmp_path, fsdp=True)
    assert copied.devices == 4 and copied.sizes["weights"] == whole["weights"]
    assert copied.sizes["gradients on their way"] == whole["gradients"]
    for name in ("weights", "gradients", "optimizer (Adam)"):
        assert sharded.sizes[name] == whole[name] // 4
    assert 0 < sharded.sizes["gathered layers"] <= whole["weights"] + whole["gradients"]


def test_an_optimizer_without_state_takes_nothing(tmp_path):
    assert memory(tmp_path, optim="sgd").sizes["optimizer (sgd)"] == 0


def test_model_code_that_looks_at_values_is_planned_by_a_formula_that_says_so(tmp_path, monkeypatch):
    def looks(*args, **kwargs):
        raise RuntimeError("a value is needed\nand more")

    monkeypatch.setattr(plan_memory, "chunk_memory", looks)
    plan = memory(tmp_path)
    assert plan.source.startswith("a formula's") and "'llama'" in plan.source and "a value is needed)" in plan.source
    assert plan.sizes["activations"] > 0


def test_a_model_that_does_not_pack_is_planned_padded(tmp_path):
    packed, padded = memory(tmp_path), memory(tmp_path, model={"packing": False})
    assert padded.source == packed.source
    assert 0.8 < padded.sizes["activations"] / packed.sizes["activations"] < 1.6  # contexts are not shared


def test_few_long_texts_stand_for_as_many_tokens():
    texts = chunk()
    assert merged(texts).tokens_B().sum() == texts.tokens_B().sum()
    generation = merged(texts).generation
    assert generation is not None and int(generation.lengths_N.max()) == 26
    assert abs(int(generation.scored_X.sum()) - 6 * 20) <= len(generation)
