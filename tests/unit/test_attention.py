from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

from ullme.apps.check_gradient import gradient_failure
from ullme.apps.check_tiny import WINDOW, randomise, tiny_config, tiny_model
from ullme.models.attention import AttentionSwitch, attention_switch, text_decoder
from ullme.models.probe import distinct_ids, probe, relative_error
from ullme.models.specs import logits_head

TOLERANCE = 1e-5
LENGTH = 12

MECHANISM = {
    "llama": "argument",
    "gemma3_text": "argument",
    "gpt2": "argument",
    "mistral": "argument",
    "cohere": "argument",
    "bloom": "config",
    "mpt": "mask",
    "gptj": "mask",
    "stablelm": "mask",
    "llama4_text": "mask",
    "openai-gpt": "buffer",
    "gpt_neo": "buffer",
}


def visible(model: Any, switch: AttentionSwitch, length: int = LENGTH, left: int = 0) -> Tensor:
    """Which token's state follows a change of which token, bool (T, T), padding left out."""
    ids_1T, mask_1T = distinct_ids(model, length + left), torch.ones(1, length + left, dtype=torch.long)
    mask_1T[:, :left] = 0
    ids_NT = ids_1T.repeat(length + 1, 1)
    for changed in range(length):
        ids_NT[changed + 1, left + changed] = 7
    with torch.no_grad():
        hidden_NTD = switch.hidden(model, ids_NT, mask_1T.expand_as(ids_NT), "bidirectional")
    changes_TT = (hidden_NTD[1:] - hidden_NTD[:1]).norm(dim=-1)[:, left:]
    return changes_TT.T > 1e-4


def one_layer(model_type: str, **changes: Any) -> Any:
    config = tiny_config(model_type)
    for name, value in {"num_hidden_layers": 1, **changes}.items():
        setattr(config, name, value)
    model = CAUSAL_LM[model_type]._from_config(config).eval()
    randomise(model)
    return model


def _classes() -> dict[str, Any]:
    from transformers import Llama4ForCausalLM, MistralForCausalLM

    return {"mistral": MistralForCausalLM, "llama4_text": Llama4ForCausalLM}


CAUSAL_LM = _classes()


@pytest.mark.parametrize(("model_type", "mechanism"), MECHANISM.items())
def test_invariants_hold(model_type: str, mechanism: str) -> None:
    model = tiny_model(model_type)
    switch = attention_switch(model)
    result = probe(model, switch, TOLERANCE)
    assert result.passed, result.failures
    assert (switch.mechanism, result.head_reproduced) == (mechanism, True)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "stablelm", "llama4_text", "falcon"])
def test_attention_implementations_agree(model_type: str) -> None:
    states = []
    for implementation in ("eager", "sdpa"):
        model = tiny_model(model_type, implementation)
        ids_1T = distinct_ids(model, LENGTH)
        with torch.no_grad():
            states.append(attention_switch(model).hidden(model, ids_1T, torch.ones_like(ids_1T), "bidirectional"))
    assert relative_error(*states) < TOLERANCE


@pytest.mark.parametrize("mechanism", ["argument", "mask"])
@pytest.mark.parametrize("left", [0, 3])
def test_sliding_window_reaches_as_far_to_both_sides(mechanism: Any, left: int) -> None:
    model = one_layer("mistral")
    distance_TT = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs()
    assert torch.equal(visible(model, AttentionSwitch(mechanism), left=left), distance_TT <= WINDOW)


@pytest.mark.parametrize("model_type", ["mistral", "llama4_text"])
def test_windows_and_chunks_open_on_request(model_type: str) -> None:
    kinds = {"layer_types": ["chunked_attention"], "no_rope_layers": [1]} if model_type == "llama4_text" else {}
    model = one_layer(model_type, **kinds)
    assert visible(model, AttentionSwitch("mask", window="full")).all()


@pytest.mark.parametrize("left", [0, 3])
def test_chunks_are_counted_from_the_first_real_token(left: int) -> None:
    model = one_layer("llama4_text", layer_types=["chunked_attention"], no_rope_layers=[1], moe_layers=[])
    chunk_T = torch.arange(LENGTH) // WINDOW
    assert torch.equal(visible(model, AttentionSwitch("mask"), left=left), chunk_T[:, None] == chunk_T)


@pytest.mark.parametrize("model_type", sorted(MECHANISM))
def test_a_bidirectional_call_leaves_the_model_as_it_was(model_type: str) -> None:
    model = tiny_model(model_type).train()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    switch = attention_switch(model)
    config, state = copy.deepcopy(model.config.to_dict()), copy.deepcopy(dict(model.named_buffers()))
    ids_1T = distinct_ids(model, LENGTH)
    switch.hidden(model, ids_1T, torch.ones_like(ids_1T), "bidirectional")
    assert model.config.to_dict() == config and hasattr(model.config, "is_causal") == ("is_causal" in config)
    assert all(torch.equal(value, state[name]) for name, value in model.named_buffers())
    assert all(module.training for module in model.modules())
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_generation_is_the_same_bit_for_bit_after_bidirectional_calls() -> None:
    model = tiny_model("gemma3_text", "sdpa")
    ids_1T = distinct_ids(model, LENGTH)

    def generated() -> Any:
        return model.generate(
            ids_1T,
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )

    before = generated()
    switch = attention_switch(model)
    switch.hidden(model, ids_1T, torch.ones_like(ids_1T), "bidirectional")
    after = generated()
    assert torch.equal(before.sequences, after.sequences)
    assert all(torch.equal(a, b) for a, b in zip(before.scores, after.scores, strict=True))


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt_neo", "llama4_text", "bloom"])
def test_mode_travels_with_the_call_through_recomputation(model_type: str) -> None:
    model = tiny_model(model_type)
    assert gradient_failure(model, attention_switch(model), TOLERANCE) == ("", True)


def test_gradient_is_exact_in_float64() -> None:
    model = tiny_model("gpt2").double()
    assert gradient_failure(model, attention_switch(model), 1e-12) == ("", True)


class FlippedState:
    """The mistake that the gradient invariant exists for: the mode is an attribute that the next call overwrites."""

    packs = False

    def hidden(self, model: Any, ids_NT: Tensor, mask_NT: Tensor, attention: str) -> Tensor:
        for layer in model.model.layers:
            layer.self_attn.is_causal = attention == "causal"
        return model.model(input_ids=ids_NT, use_cache=False)[0]


def test_gradient_check_sees_a_mode_kept_in_module_state() -> None:
    failure, _ = gradient_failure(tiny_model("llama", "sdpa"), FlippedState(), TOLERANCE)  # type: ignore[arg-type]
    assert failure == "gradients change under activation checkpointing"


@pytest.mark.parametrize("mechanism", ["argument", "mask"])
def test_invariants_hold_with_lora_layers_inside(mechanism: Any) -> None:
    model = tiny_model("llama")
    plain = model(distinct_ids(model, LENGTH)).logits
    get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    assert not torch.equal(model(distinct_ids(model, LENGTH)).logits, plain)
    assert probe(model, AttentionSwitch(mechanism), TOLERANCE).passed


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("model_type", ["llama", "stablelm"])
def test_invariants_hold_under_autocast(model_type: str, implementation: str) -> None:
    model = tiny_model(model_type, implementation)
    with torch.autocast("cpu", torch.bfloat16):
        result = probe(model, attention_switch(model), 1e-1)
    assert result.passed, result.failures


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gptj"])
def test_half_precision_models_pass_the_probe(model_type: str, dtype: torch.dtype) -> None:
    attention_switch(tiny_model(model_type).to(dtype))


def test_where_rounding_hides_what_padding_does_float32_decides() -> None:
    """Sharp attention, layer upon layer: rounded to bfloat16, a padded text differs from itself by half."""
    config = tiny_config("llama")
    config.num_hidden_layers = 16
    model = LlamaForCausalLM._from_config(config).eval()
    randomise(model)
    model.to(torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert probe(model, AttentionSwitch("argument")).failures.keys() == {"padding"}
    assert attention_switch(model).packs
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("model_type", ["llama", "stablelm"])
def test_a_row_without_tokens_is_finite_and_harms_no_other(model_type: str) -> None:
    model = tiny_model(model_type, "sdpa")
    ids_NT, mask_NT = distinct_ids(model, LENGTH).repeat(2, 1), torch.ones(2, LENGTH, dtype=torch.long)
    mask_NT[1] = 0
    hidden_NTD = attention_switch(model).hidden(model, ids_NT, mask_NT, "bidirectional")
    hidden_NTD.sum().backward()
    assert hidden_NTD.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("mamba", "linear_attention"),
        ("rwkv", "recurrent"),
        ("jamba", "linear_attention"),
        ("qwen3_next", "linear_attention"),
        ("lfm3", "conv"),
        ("falcon_h1", "hybrid"),
        ("bert", "encoder"),
        ("bart", "decoder of an encoder-decoder"),
    ],
)
def test_refused_by_kind_of_layer_with_the_cure(model_type: str, kind: str) -> None:
    unbuilt = SimpleNamespace(config=CONFIG_MAPPING[model_type]())
    with pytest.raises(ValueError, match=f"'{model_type}'.*{kind}.*; use an all-attention decoder") as error:
        attention_switch(unbuilt)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_model_exported_as_bidirectional_is_refused_as_a_base() -> None:
    model = tiny_model("llama")
    model.config.is_causal = False
    with pytest.raises(ValueError, match="'is_causal': false.*remove the key"):
        attention_switch(model)


# Planted models: each is wrong in one way that gives embeddings all the same.


class DeafModel(LlamaModel):
    """Takes every mechanism without complaint, and stays causal."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, **kwargs):  # type: ignore[override]
        if attention_mask is not None and attention_mask.dim() == 4:
            attention_mask = None
        kwargs["is_causal"] = True
        return super().forward(input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)


class MaskOnlyModel(LlamaModel):
    """Swallows ``is_causal`` and heeds a mask, as stablelm does, but nobody wrote a row for it."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, **kwargs):  # type: ignore[override]
        kwargs.pop("is_causal", None)
        return super().forward(input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs)


class OneBlindLayer(LlamaDecoderLayer):
    def forward(self, hidden_states, attention_mask=None, **kwargs):  # type: ignore[override]
        length = hidden_states.shape[1]
        past_TT = torch.ones(length, length, dtype=torch.bool).tril()
        mask = past_TT if attention_mask is None else attention_mask & past_TT
        return super().forward(hidden_states, attention_mask=mask.expand(len(hidden_states), 1, -1, -1), **kwargs)


def planted(model_class: type[LlamaModel], model_type: str = "planted") -> LlamaForCausalLM:
    config = LlamaConfig(
        **{k: v for k, v in tiny_config("llama").to_dict().items() if k not in ("model_type", "dtype")}
    )
    config.model_type = model_type
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    model.model = model_class(config).eval()
    randomise(model)
    return model


def test_a_silently_causal_model_is_refused() -> None:
    model = planted(DeafModel)
    result = probe(model, AttentionSwitch("argument"))
    assert "an early token does not see a late one" in result.failures["future"]
    with pytest.raises(ValueError, match="'planted'.*does not see a late one.*try attn_implementation='eager'"):
        attention_switch(model)


def test_a_model_that_is_causal_only_without_padding_is_seen() -> None:
    result = probe(tiny_model("stablelm", "sdpa"), AttentionSwitch("argument"))
    assert result.failures["future"].endswith("without padding")


def test_one_blind_layer_among_seeing_ones_is_seen() -> None:
    model = planted(LlamaModel)
    model.model.layers[1] = OneBlindLayer(model.config, 1).eval()
    randomise(model)
    result = probe(model, AttentionSwitch("argument"))
    assert result.failures == {"layers": "layers.1 (OneBlindLayer) mixes tokens but does not see the future"}
    with pytest.raises(ValueError, match=r"layers\.1 "):
        attention_switch(model)


def test_an_unknown_class_gets_the_first_mechanism_that_works() -> None:
    assert attention_switch(planted(LlamaModel)).mechanism == "argument"
    assert attention_switch(planted(MaskOnlyModel)).mechanism == "mask"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_padding_dependent_model_is_refused(dtype: torch.dtype) -> None:
    """Learned positions that count padding."""
    model = GPT2LMHeadModel(GPT2Config(**tiny_config("gpt2").to_diff_dict() | {"model_type": "gpt2"})).eval()
    randomise(model)
    model.to(dtype)
    numbered = model.transformer.forward

    def by_place(input_ids: Tensor, position_ids: Tensor | None = None, **call: Any) -> Any:
        return numbered(input_ids, **call)

    model.transformer.forward = by_place  # type: ignore[method-assign]
    result = probe(model, AttentionSwitch("argument"))
    assert result.failures == {"padding": "left padding changes the embedding of a text"}
    with pytest.raises(ValueError, match="left padding changes"):
        attention_switch(model)


@pytest.mark.parametrize("model_type", ["cohere", "granite", "gemma2", "minicpm3", "gptj", "phi", "modernbert-decoder"])
def test_logits_follow_from_hidden_states(model_type: str) -> None:
    model = tiny_model(model_type)
    ids_1T = distinct_ids(model, LENGTH)
    mask_1T = torch.ones_like(ids_1T)
    hidden_1TD = attention_switch(model).hidden(model, ids_1T, mask_1T, "causal")
    head = logits_head(model)
    assert head is not None
    assert relative_error(head(hidden_1TD), model(input_ids=ids_1T, attention_mask=mask_1T).logits) < TOLERANCE


@pytest.mark.parametrize("model_type", ["llama4", "mllama", "modernbert-decoder", "opt", "gemma3"])
def test_text_decoder_is_the_model_under_the_head(model_type: str) -> None:
    model = tiny_model(model_type)
    decoder = text_decoder(model)
    assert isinstance(decoder, nn.Module) and decoder is not model
    head = model.get_output_embeddings()
    assert all(module is not head for module in decoder.modules())
