"""LoRA layers under autocast: the same numbers, and no copy of their input."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer

from tests.tiny import tiny_ullme
from ullme.types import Texts


def layers(model):
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def embedded(model, autocast: bool):
    """Embeddings, gradients, and the bytes that were kept for backward."""
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.zero_grad()
    texts = Texts.from_lists([list(range(3, 60)), list(range(60, 90))])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            rep_ND = model.embed_texts(texts)
    rep_ND.square().sum().backward()
    return rep_ND.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None], sum(kept.values())


def stock(model) -> None:
    """As peft has it: every input is cast to the adapter's dtype, and base and adapter are computed apart."""
    for layer in layers(model):
        layer.cast_input_dtype_enabled = True
        layer.__class__ = Linear


@pytest.mark.parametrize("autocast", [False, True])
def test_a_bfloat16_base_gives_the_numbers_that_peft_gives(tiny_models, autocast):
    model = tiny_ullme(tiny_models, "llama", lora_name="test", lora_r=4, dtype="bfloat16")
    assert layers(model)
    rep_ND, gradients, bytes_kept = embedded(model, autocast)
    stock(model)
    right_ND, expected, stock_bytes = embedded(model, autocast)
    # under autocast the fused layer rounds to bfloat16 once where peft does twice
    tolerance = 5e-2 if autocast else 0.0
    pairs = [(rep_ND, right_ND), *zip(gradients, expected, strict=True)]
    assert all((a - b).norm() <= tolerance * b.norm() for a, b in pairs)
    assert bytes_kept < 0.95 * stock_bytes if autocast else bytes_kept == stock_bytes
