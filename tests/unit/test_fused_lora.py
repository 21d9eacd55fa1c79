"""The fused LoRA layer: peft's numbers, in training and packed calls, and peft's own code wherever else."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tests.tiny import tiny_ullme
from ullme.models.fused_lora import FusedLoraLinear, _LoraLinear, fuse, packed_lora

SCALE, RANK = 1.5, 3


def layer(dtype: torch.dtype = torch.float64, bias: bool = True, **options) -> FusedLoraLinear:
    torch.manual_seed(0)
    net = nn.ModuleDict({"linear": nn.Linear(6, 5, bias=bias, dtype=dtype)})
    config = LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=["linear"], init_lora_weights=False, **options)
    module = get_peft_model(net, config, autocast_adapter_dtype=False).base_model.model["linear"]
    for weight in (module.lora_A.default.weight, module.lora_B.default.weight):
        weight.data = weight.data.to(dtype)
    fuse(module)
    assert isinstance(module, FusedLoraLinear)
    return module.train()


def inputs(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def outcome(compute, x: Tensor, module: FusedLoraLinear) -> list[Tensor]:
    """Output, and the gradients of input, A and B."""
    leaf = x.clone().requires_grad_()
    output = compute(leaf)
    weights = [module.lora_A.default.weight, module.lora_B.default.weight]
    return [output, *torch.autograd.grad(output.float().square().sum(), [leaf, *weights])]


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_peft(bias):
    module = layer(bias=bias)
    found, right = (outcome(f, inputs(), module) for f in (module, super(FusedLoraLinear, module).forward))
    assert type(found[0].grad_fn).__name__ != type(right[0].grad_fn).__name__  # one was fused, the other not
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-12) for a, b in zip(found, right, strict=True))


def test_dropout_falls_on_the_low_rank_input_alone():
    module = layer(lora_dropout=0.4)
    base, a, b = module.base_layer, module.lora_A.default.weight, module.lora_B.default.weight

    def written_out(x: Tensor) -> Tensor:
        dropped, _ = torch.native_dropout(x.flatten(0, 1), 0.4, True)
        return base(x) + SCALE * (dropped @ a.T @ b.T).unflatten(0, x.shape[:2])

    results = []
    for compute in (module, written_out):
        torch.manual_seed(5)
        results.append(outcome(compute, inputs(), module))
    assert all(torch.allclose(x, y, atol=1e-12) for x, y in zip(*results, strict=True))
    torch.manual_seed(6)
    assert not torch.allclose(module(inputs()), results[0][0])


def test_under_autocast_gradients_of_the_adapter_keep_its_float32():
    module = layer(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found, right = (
            outcome(f, inputs(torch.float32), module) for f in (module, super(FusedLoraLinear, module).forward)
        )
    assert [x.dtype for x in found] == [x.dtype for x in right] == [torch.bfloat16] + 3 * [torch.float32]
    assert all((a.double() - b.double()).norm() <= 2e-2 * b.double().norm() for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("case", ["eval", "disabled", "merged", "trained base", "two adapters", "mixed dtypes", "dora"])
def test_what_is_unusual_is_left_to_peft(case, monkeypatch):
    module = layer(use_dora=case == "dora")
    if case == "eval":
        module.eval()
    elif case == "disabled":
        module.enable_adapters(False)
    elif case == "merged":
        module.merge()
    elif case == "trained base":
        module.base_layer.weight.requires_grad_()
    elif case == "two adapters":
        module.update_layer("other", RANK, lora_alpha=1, config=LoraConfig(r=RANK))
        module.set_adapter(["default", "other"])
    elif case == "mixed dtypes":
        module.lora_A.default.weight.data = module.lora_A.default.weight.data.float()
        module.lora_B.default.weight.data = module.lora_B.default.weight.data.float()
    monkeypatch.setattr("ullme.models.fused_lora._LoraLinear.apply", None)
    assert module(inputs()).shape == (2, 7, 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_packed_call_in_eval_mode_gives_pefts_values_without_dropout(dtype):
    module = layer(dtype, lora_dropout=0.4).eval()
    adapter_dtype = torch.promote_types(dtype, torch.float32)  # as peft has it over a half-precision base
    for weight in (module.lora_A.default.weight, module.lora_B.default.weight):
        weight.data = weight.data.to(adapter_dtype)
    with packed_lora():
        found = outcome(module, inputs(dtype), module)
    right = outcome(module, inputs(dtype), module)
    assert type(found[0].grad_fn).__name__ != type(right[0].grad_fn).__name__  # one was fused, the other not
    assert [x.dtype for x in found] == [x.dtype for x in right]
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert all(
        (a.double() - b.double()).norm() <= tolerance * b.double().norm() for a, b in zip(found, right, strict=True)
    )


def test_embedding_is_fused_and_generation_is_not(tiny_models, monkeypatch):
    model = tiny_ullme(tiny_models, lora_name="one").eval()
    calls = []
    fused = _LoraLinear.apply
    monkeypatch.setattr("ullme.models.fused_lora._LoraLinear.apply", lambda *a: calls.append(1) or fused(*a))
    model.generate(**model.tokenizer("a text", return_tensors="pt"), max_new_tokens=2)
    assert not calls
    model.encode(["a text"])
    assert calls


def test_a_models_layers_are_fused_and_save_as_pefts(tiny_models, tmp_path):
    model = tiny_ullme(tiny_models, lora_name="one")
    fused = [m for m in model.modules() if isinstance(m, FusedLoraLinear)]
    assert len(fused) == 14  # seven linear layers in each of two
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model")
    assert (again.encode(["a text"]) == model.encode(["a text"])).all()
