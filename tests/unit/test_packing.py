"""Packed execution: texts end to end give what each gives alone, in values and in gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from tests.batches import random_batch
from tests.tiny import tiny_config, tiny_ullme
from ullme.models import packed_attention as attention_module
from ullme.models.attention import AttentionSwitch, attention_switch
from ullme.models.packed_attention import IMPLEMENTATIONS, packed_attention
from ullme.models.packing_probe import packing_failure
from ullme.models.reach import Reach
from ullme.models.text_groups import CELLS, ROWS, SHORT, TextGroups
from ullme.types import Attention, Texts

KINDS = ("llama", "mistral", "qwen3", "gemma3_text", "gpt2", "phi")
LENGTHS = [40, 7, ROWS + 2, 40, 1]
BOTH: tuple[Attention, ...] = ("causal", "bidirectional")


def model_of(kind: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"max_position_embeddings": 2 * ROWS, **changes}
    return AutoModelForCausalLM.from_config(tiny_config(kind, **sizes)).double().eval()


def some_texts(lengths: list[int] = LENGTHS) -> Texts:
    torch.manual_seed(1)
    return Texts.from_lists([torch.randint(3, 380, (length,)).tolist() for length in lengths])


def gradients(states_XD: Tensor, model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(2)
    loss = (states_XD * torch.randn_like(states_XD)).sum()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def assert_same(packed: AttentionSwitch, model: PreTrainedModel, attention: Attention, tolerance: float) -> None:
    texts = some_texts()
    found, right = (s.states(model, texts, attention) for s in (packed, replace(packed, packs=False)))
    assert (found - right).norm() <= tolerance * right.norm()
    gradient, right_gradient = gradients(found, model), gradients(right, model)
    assert gradient.keys() == right_gradient.keys()
    for name, value in right_gradient.items():
        assert (gradient[name] - value).norm() <= 10 * tolerance * value.norm() + 1e-14, name


@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_states_and_gradients_are_the_padded_ones(kind, implementation, attention):
    model = model_of(kind) if implementation == "sdpa" else model_of(kind).float()  # eager softmax is in float32
    model.set_attn_implementation(implementation)
    switch = attention_switch(model)
    assert switch.packs
    tolerance = 1e-9 if implementation == "sdpa" else 1e-6
    assert_same(switch, model, attention, 1e-6 if kind == "gemma3_text" else tolerance)  # its norms are in float32
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("window", ["window", "full"])
@pytest.mark.parametrize("attention", BOTH)
@pytest.mark.parametrize("width", [1, 5, ROWS + 1])
def test_windows_are_those_of_padded_execution_across_blocks(width, attention, window):
    model = model_of("mistral", sliding_window=width)
    switch = attention_switch(model, window)
    assert switch.packs
    assert_same(switch, model, attention, 1e-9)


@pytest.mark.parametrize("attention", BOTH)
def test_recomputed_layers_are_packed_in_backward_too(attention):
    model = model_of("llama").train()
    switch = attention_switch(model)
    plain = gradients(switch.packed(model, some_texts(), attention), model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    states_XD = switch.packed(model, some_texts(), attention)
    again = gradients(states_XD, model)
    assert all(torch.equal(again[name], value) for name, value in plain.items())


@pytest.mark.parametrize("attention", BOTH)
def test_softcapped_products_are_capped(attention):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 9, 4, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    starts = torch.tensor([0, 9])
    found, _ = packed_attention(
        nn.Identity(), query, key, value, None, attention=attention, softcap=1.5, cu_seq_lens_q=starts
    )
    product = 1.5 * torch.tanh(query @ key.repeat_interleave(2, 1).mT / 2 / 1.5)
    if attention == "causal":
        product = product.masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf)
    right = (product.softmax(-1) @ value.repeat_interleave(2, 1)).transpose(1, 2)
    assert torch.allclose(found, right, atol=1e-12)
    weight = torch.randn_like(right)
    pairs = zip(*(torch.autograd.grad((x * weight).sum(), (query, key, value)) for x in (found, right)), strict=True)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in pairs)


@pytest.mark.parametrize("attention", BOTH)
def test_softcapped_products_are_capped_under_dropout_too(attention):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 15, 4, dtype=torch.float64) for heads in (4, 2, 2))
    options = {"attention": attention, "softcap": 1.5, "cu_seq_lens_q": torch.tensor([0, 9, 15])}
    plain, _ = packed_attention(nn.Identity(), query, key, value, None, **options)
    drawn, _ = packed_attention(nn.Identity(), query, key, value, None, dropout=1e-12, **options)
    assert torch.allclose(plain, drawn, atol=1e-10)
    dropped, _ = packed_attention(nn.Identity(), query, key, value, None, dropout=0.5, **options)
    assert not torch.allclose(plain, dropped, atol=1e-2)


def test_attention_dropout_is_drawn_again_by_a_repeated_forward():
    model = model_of("llama", attention_dropout=0.5).train()
    switch = AttentionSwitch("argument", packs=True)
    texts, drawn = some_texts(), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(switch.packed(model, texts, "causal"))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert all(g.isfinite().all() for g in gradients(drawn[0], model).values())


def test_in_half_precision_packed_attention_is_as_near_to_the_truth_as_eager_attention():
    torch.manual_seed(0)
    exact = [torch.randn(1, heads, 150, 16, dtype=torch.float64) for heads in (6, 2, 2)]
    half = [x.bfloat16() for x in exact]
    right = nn.functional.scaled_dot_product_attention(*exact, enable_gqa=True).transpose(1, 2)
    query, key, value = (x.repeat_interleave(3, 1) if x.shape[1] == 2 else x for x in half)
    eager = ((query @ key.mT / 4).softmax(-1, torch.float32).to(torch.bfloat16) @ value).transpose(1, 2)
    ours, _ = packed_attention(
        nn.Identity(), *half, None, attention="bidirectional", cu_seq_lens_q=torch.tensor([0, 150])
    )
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - right).norm() <= 1.3 * (eager.double() - right).norm()


def test_a_gpu_kernel_is_given_the_heads_the_starts_and_the_window(monkeypatch):
    """What torch's varlen attention would get on a GPU: no GPU here, so the kernel is a recording."""
    calls = []

    def kernel(query, *others, **options):
        calls.append((query.shape, [getattr(x, "shape", x) for x in others], options))
        return query

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.setattr(attention_module, "_has_kernel", lambda query, value: True)
    query, key = torch.randn(1, 4, 9, 8), torch.randn(1, 2, 9, 8)
    output, _ = packed_attention(
        nn.Identity(), query, key, key, None, attention="causal", sliding_window=4, scaling=0.5,
        cu_seq_lens_q=torch.tensor([0, 5, 9]), max_length_q=5,
    )  # fmt: skip
    assert output.shape == (1, 9, 4, 8)
    shape, others, options = calls[0]
    assert shape == (9, 4, 8) and others == [(9, 2, 8), (9, 2, 8), (3,), (3,), 5, 5]
    assert options == {"scale": 0.5, "window_size": (3, 0), "enable_gqa": True}


@pytest.mark.parametrize(
    ("attention", "window", "seen"),
    [("causal", None, [0, 1, 2]), ("causal", 2, [1, 2]), ("bidirectional", None, [0, 1, 2, 3, 4]),
     ("bidirectional", 1, [1, 2, 3])],
)  # fmt: skip
def test_a_reach_counts_a_window_as_transformers_does(attention, window, seen):
    reach, row, every = Reach.of(attention, window), range(2, 3), np.arange(5)
    assert list(reach.keys(row, 5)) == seen
    assert every[~reach.hidden(every - 2)].tolist() == seen
    assert not reach.hides(row, reach.keys(row, 5)) and reach.hides(row, range(5)) == (len(seen) < 5)


def test_short_texts_of_like_lengths_attend_side_by_side_and_long_ones_alone():
    groups = TextGroups([60, 59, ROWS + 2, 58, SHORT + 1, 2, 1, 57])
    blocks = groups.blocks((6, 2), Reach(None, None), torch.device("cpu"))
    assert [block.texts for block in blocks] == [1, 1, 1, 4, 2]
    assert [block.hidden is not None for block in blocks] == [False, False, False, True, True]
    assert sum(block.cells for block in blocks) <= 3 * (
        1.4 * (60**2 + 59**2 + 58**2 + 57**2 + 5) + (ROWS + 2) ** 2 + (SHORT + 1) ** 2
    )


def test_a_group_is_no_larger_than_what_a_cache_holds():
    blocks = TextGroups([SHORT] * 40).blocks((1, 1), Reach(None, None), torch.device("cpu"))
    assert sum(block.texts for block in blocks) == 40
    assert all(1 < block.texts and block.cells <= CELLS and block.hidden is None for block in blocks)


def test_packing_is_not_used_where_a_layer_does_not_say_where_texts_end():
    model = model_of("llama")
    for layer in model.model.layers:
        own = layer.self_attn.forward
        layer.self_attn.forward = lambda *a, own=own, cu_seq_lens_q=None, **k: own(*a, **k)
    switch = attention_switch(model)
    assert not switch.packs
    assert "not told where texts end" in packing_failure(model, switch)


def test_packing_is_not_used_where_texts_see_each_other(monkeypatch):
    def leaking(module, query, key, value, attention_mask, **options):
        everything = torch.tensor([0, query.shape[2]])
        return packed_attention(
            module, query, key, value, None, **options | {"cu_seq_lens_q": everything, "text_groups": None}
        )

    for attention in BOTH:
        name = IMPLEMENTATIONS[attention, False]
        monkeypatch.setitem(
            AttentionInterface._global_mapping, name, lambda *a, attention=attention, **k: leaking(
                *a, attention=attention, **k)
        )  # fmt: skip
    model = model_of("llama")
    assert not attention_switch(model).packs


def test_packing_is_not_used_where_a_window_does_not_reach_the_attention():
    model = model_of("mistral", sliding_window=64)
    for layer in model.model.layers:
        layer.self_attn.sliding_window = layer.self_attn.config.sliding_window = None
        layer.self_attn.config.sliding_window = 64
        own = layer.self_attn.forward

        def without_window(*a, own=own, attn=layer.self_attn, **k):
            attn.config.sliding_window = None
            try:
                return own(*a, **k)
            finally:
                attn.config.sliding_window = 64

        layer.self_attn.forward = without_window
    switch = attention_switch(model)
    assert not switch.packs
    assert packing_failure(model, switch) == "its attention is not told its window"


def test_a_model_runs_padded_when_asked_to(tiny_models):
    packed, padded = tiny_ullme(tiny_models), tiny_ullme(tiny_models, packing=False)
    assert packed.switch.packs and not padded.switch.packs
    texts = ["a", "a longer text of some words", "two words"]
    assert torch.allclose(torch.tensor(packed.encode(texts)), torch.tensor(padded.encode(texts)), atol=1e-5)


def test_what_a_step_keeps_for_backward_does_not_grow_with_the_vocabulary(tmp_path):
    batch, kept = random_batch(3, 3, seed=1, generation=True), []
    for vocabulary in (49_152, 131_072, 262_144):
        model = tiny_ullme(tmp_path / str(vocabulary), changes={"vocab_size": vocabulary}, lora_name="one", lora_r=4)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor, storages=storages, weights=weights):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            inputs = model.train()(batch=batch, needs={"embedding", "logp"})
        assert inputs.logp_BP.requires_grad and inputs.passage_BPD.requires_grad
        kept.append(sum(storages.values()))
    assert kept[0] == kept[1] == kept[2] > 0
