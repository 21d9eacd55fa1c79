"""A tiny random model of any causal-LM architecture, for ``ullme check --all``.

Nothing is downloaded: the default configuration of the architecture is shrunk field by field, so that every kind of
layer it mixes (sliding, chunked, full, dense, sparse) is still there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ullme.models.probe import LENGTH

VOCABULARY = 96
LAYERS = 2
MOST_WEIGHTS = 5_000_000  # a default configuration that slipped through would fill the machine's memory
WINDOW = 4  # shorter than the texts of the check, so that windows and chunks bite

_LAYER_COUNT = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_blocks",
)
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "decoder_attention_heads")
_WIDTH = ("hidden_size", "n_embd", "d_model", "emb_dim", "embedding_size", "word_embed_proj_dim", "embedding_dim")

SIZES: Mapping[str, int] = {
    **dict.fromkeys(_LAYER_COUNT, LAYERS),
    **dict.fromkeys(
        (*_HEADS, "encoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4
    ),
    **dict.fromkeys(_WIDTH, 32),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "kv_n_heads"), 2),
    **dict.fromkeys(("swa_num_attention_heads",), 4),
    **dict.fromkeys(("head_dim", "swa_head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "dim_head"), 8),
    **dict.fromkeys(("rotary_dim", "kv_channels", "d_head"), 8),
    **dict.fromkeys(("qk_head_dim",), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "o_lora_rank", "laurel_rank", "hc_lowrank"), 16),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_inner", "dff", "dim_ff"), 48
    ),
    **dict.fromkeys(("n_inner", "ffn_hidden_size", "expert_ffn_hidden_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 24),
    **dict.fromkeys(("shared_experts_intermediate_size", "dense_intermediate_size", "router_hidden_size"), 24),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "zero_expert_num"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "o_groups", "first_k_dense_replace"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), VOCABULARY),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_chunk_size", "window_size"), WINDOW),
    **dict.fromkeys(("local_attention",), 2 * WINDOW),
    **dict.fromkeys(("patch_size", "temporal_patch_size", "spatial_merge_size"), 2),
    **dict.fromkeys(("depth", "num_global_layers", "conv_kernel_size"), LAYERS),
    **dict.fromkeys(("mlp_dim", "mm_embed_dim", "audio_embed_dim", "global_head_dim", "output_channels"), 16),
    **dict.fromkeys(("image_size",), 8),
    **dict.fromkeys(("adapter_in_dim", "adapter_out_dim", "adapter_input_size"), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"), 64),
    **dict.fromkeys(("max_target_positions", "max_source_positions", "context_length"), 64),
    **dict.fromkeys(("index_topk",), LENGTH // 2),  # so that an index has to choose
    **dict.fromkeys(("index_n_heads",), 32),  # with few heads many scores are zero, and padding would break their ties
    **dict.fromkeys(("index_head_dim",), 16),
    **dict.fromkeys(("query_pre_attn_scalar", "hidden_size_per_layer_input", "ple_embed_dim"), 8),
}
TOKENS: Mapping[str, int] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

_DOTS3_NOTE: Mapping[str, Any] = {
    "layer_types": ["indexed_attention", "sliding_attention"],
    "per_layer_config": {
        1: {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "head_dim": 16}
        | {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    },
}

# What the shrunken fields do not settle, by model type: None leaves a field to the class.
OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10_000.0} for kind in ("sliding_attention", "full_attention")
        },
        "num_key_value_heads": 2,
        "logit_scale": 0.0625,
    },
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "dots3_note_text": _DOTS3_NOTE,
    "dots3_note": {
        "text_config": _DOTS3_NOTE,
        "vision_config": {"mlp_layer_types": ["dense", "dense"], "per_layer_config": {}},
    },
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """A shrunken configuration of this model type; every layer kind of the default one appears in it."""
    config_class = CONFIG_MAPPING[model_type]
    return _shrunk(config_class, dict(OVERRIDES.get(model_type, {})))


def _shrunk(config_class: type[PreTrainedConfig], overrides: dict[str, Any]) -> PreTrainedConfig:
    default = _default(config_class, overrides)
    fields: dict[str, Any] = {
        name: SIZES[name] for name, value in vars(default).items() if name in SIZES and _is_size(value)
    }
    if getattr(default, "sliding_window", 0) is None:
        fields["sliding_window"] = WINDOW
    fields |= {name: token for name, token in TOKENS.items() if getattr(default, name, None) is not None}
    kinds = list(dict.fromkeys(getattr(default, "layer_types", None) or []))
    if kinds == ["full_attention"] and hasattr(default, "sliding_window"):
        kinds = ["sliding_attention", "full_attention"]  # off by default, but some released models have them
    if hasattr(default, "use_sliding_window"):
        fields["use_sliding_window"] = True
    if "qk_rope_head_dim" in fields and "num_key_value_heads" in fields:
        fields["num_key_value_heads"] = SIZES["num_attention_heads"]  # latent attention has no grouped heads
    if kinds and not isinstance(getattr(config_class, "layer_types", None), property):
        layers = max(LAYERS, len(kinds))
        fields |= {name: layers for name in _LAYER_COUNT if name in fields}
        fields["layer_types"] = (kinds * layers)[:layers]
    for name in config_class.sub_configs or {}:
        sub_config = getattr(default, name, None)
        if isinstance(sub_config, PreTrainedConfig):
            fields[name] = _shrunk(type(sub_config), dict(overrides.pop(name, {}))).to_dict()
    fields |= overrides
    return config_class(**{name: value for name, value in fields.items() if value is not None})


def _default(config_class: type[PreTrainedConfig], overrides: dict[str, Any]) -> PreTrainedConfig:
    try:
        return config_class()
    except Exception:  # a class whose defaults do not fit together, whatever it raises, is built from its row
        return config_class(**{k: v for k, v in overrides.items() if not isinstance(v, dict)})


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def tiny_model(model_type: str, attn_implementation: str | None = None, seed: int = 0) -> PreTrainedModel:
    """A random model of this type in evaluation mode, fp32, with weights large enough for every path to matter."""
    config = tiny_config(model_type)
    with torch.device("meta"):
        weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters())
    if weights > MOST_WEIGHTS:
        raise ValueError(f"model_type {model_type!r}: {weights:,} weights are not tiny; shrink a field in OVERRIDES")
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)
    model = model.float().eval()
    randomise(model, seed)
    return model


def randomise(model: PreTrainedModel, seed: int = 0) -> None:
    """Fill every parameter with noise of the scale that keeps activations near one; zero gates become open."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
            else:
                parameter.add_(0.1 * noise)
