"""Frozen weights held in the precision of autocast: the same training, with less kept for backward."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.tiny import tiny_ullme
from tests.unit.training import trainer, weights
from ullme.models.half import HalfWeights
from ullme.types import Texts

MODELS = ("llama", "gpt2", "gemma3_text")
RUN = {"max_steps": 3, "bf16": True, "use_cpu": True, "learning_rate": 1e-2, "chunk_tokens": 150}


def embedded(model, half: HalfWeights | None):
    """Embeddings and gradients under autocast, and the bytes that were kept for backward beside the parameters."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    texts = Texts.from_lists([list(range(3, 40)), list(range(60, 90))])
    with half.used() if half is not None else nullcontext():
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16):
                rep_ND = model.embed_texts(texts)
        rep_ND.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return rep_ND.detach(), gradients, sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("model_type", MODELS)
def test_numbers_are_those_of_autocast_and_no_weight_is_copied(tiny_models, model_type):
    model = tiny_ullme(tiny_models, model_type, lora_name="test", lora_r=4)
    frozen = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and not m.weight.requires_grad]
    right_ND, expected, before = embedded(model, None)
    rep_ND, gradients, after = embedded(model, HalfWeights(model, torch.bfloat16))
    assert torch.equal(rep_ND, right_ND)
    assert gradients and all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    layers = sum(m.weight.numel() * 2 for m in frozen if m.weight.shape[0] != 384)  # all but the LM head
    assert before - after >= 0.8 * layers  # the first layer needs no gradient of its input


def test_afterwards_every_weight_is_the_one_it_was(tiny_models):
    model = tiny_ullme(tiny_models, "llama", lora_name="test", lora_r=4)
    before = dict(model.named_parameters())
    half = HalfWeights(model, torch.bfloat16)
    with pytest.raises(KeyError), half.used():
        assert any(p.dtype == torch.bfloat16 for p in model.parameters())
        raise KeyError
    after = dict(model.named_parameters())
    assert list(before) == list(after) and all(after[name] is p for name, p in before.items())


def test_what_trains_keeps_its_precision(tiny_models):
    model = tiny_ullme(tiny_models, "llama")
    with HalfWeights(model, torch.bfloat16).used():
        assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("objectives", ["grl", "grl_kto"])
def test_a_run_ends_with_the_weights_of_plain_autocast(tiny_models, tmp_path, monkeypatch, objectives):
    def run(name):
        torch.manual_seed(0)
        model = tiny_ullme(tiny_models, "llama", lora_name="test", lora_r=4)
        own = trainer(tmp_path / name, model, objectives, **RUN)
        own.train()
        assert all(p.dtype == torch.float32 for p in model.parameters())
        return weights(own.model)

    with_half = run("half")
    monkeypatch.setattr(HalfWeights, "used", lambda self: nullcontext())
    plain = run("plain")
    assert with_half and all(torch.equal(with_half[name], plain[name]) for name in plain)
