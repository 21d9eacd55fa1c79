"""A model without weights that can still be run: torch's fake tensors know every shape, dtype and lifetime."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from ullme.models import ULLME
from ullme.models.attention import AttentionSwitch
from ullme.models.lora import add_adapter
from ullme.models.pooling import Pooling
from ullme.models.settings import ModelSettings
from ullme.models.specs import SPECS
from ullme.types import Attention, Texts


class FakeSwitch(AttentionSwitch):
    """A switch that picks padded states by places: a mask over fake tensors has no number of tokens."""

    def states(self, causal_lm: PreTrainedModel, texts: Texts, attention: Attention) -> Tensor:
        """Last hidden states (X, D) of texts end to end."""
        if self.packs:
            return super().states(causal_lm, texts, attention)
        ids_NT, mask_NT = texts.pad(0)
        at_X = mask_NT.flatten().nonzero().squeeze(1)
        return self.hidden(causal_lm, ids_NT, mask_NT, attention).flatten(0, 1).index_select(0, at_X)


def planned_model(settings: ModelSettings, model_config: Any) -> ULLME:
    """A ULLME of these settings on fake CPU tensors, in train mode, taken to pack if it is allowed to.

    Its parameters have the dtypes of a loaded model's; an existing adapter is taken to be of the size of a new one, and
    quantised weights are in the dtype that their layers compute in.
    """
    model: Any = ULLME.__new__(ULLME)  # its constructor loads and probes weights
    nn.Module.__init__(model)
    adapter = replace(settings, adapter_path=None, lora_name=settings.lora_name or "planned", merged_adapters=())
    dtype = model_config.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
    options = {} if settings.attn_implementation is None else {"attn_implementation": settings.attn_implementation}
    with torch.device("meta"):  # peft moves its new layers, which meta tensors survive and fake ones do not
        model.causal_lm = AutoModelForCausalLM.from_config(
            model_config, dtype=dtype, trust_remote_code=settings.trust_remote_code, **options
        )
        width: int = model.causal_lm.get_input_embeddings().embedding_dim
        model._adapted = (add_adapter(model.causal_lm, adapter) if settings.has_adapter else None,)
        model.pooler = Pooling(settings.pooling, width)
    model.settings, model.merged, model.embedding_dimension = settings, (), width
    model.switch = FakeSwitch(SPECS.get(model_config.model_type, "argument"), settings.window, packs=settings.packing)
    _give_fake_tensors(model)
    return model.train()


def _give_fake_tensors(model: nn.Module) -> None:
    """Put fake CPU tensors in the place of meta ones; a tensor that stands in several places stays one."""
    known: dict[int, Any] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):  # token ids and lengths are real: model code looks at them
        for module in model.modules():
            for table in (module._parameters, module._buffers):
                for name, held in table.items():
                    if held is None:
                        continue
                    if id(held) not in known:
                        known[id(held)] = held, _fake(held)  # the old one too: its id must not be given away
                    table[name] = known[id(held)][1]
            flag: Any = getattr(module, "cast_input_dtype_enabled", None)
            if hasattr(flag, "device_type"):
                flag.device_type = "cpu"  # where autocast is looked at


def _fake(held: Tensor) -> Tensor:
    empty = torch.empty(held.shape, dtype=held.dtype)
    return nn.Parameter(empty, requires_grad=held.requires_grad) if isinstance(held, nn.Parameter) else empty
