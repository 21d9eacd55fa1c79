"""Loading a backbone: hub name, local folder, GGUF file or packaged model, to tokenizer and causal LM."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from ullme.models.checkpoint import is_checkpoint
from ullme.models.dropout import set_attention_dropout
from ullme.models.merging import require_adapters
from ullme.models.packaged import PACKAGED_MODELS, converted, packaged_gguf
from ullme.models.settings import ModelSettings


def resolve(settings: ModelSettings) -> str:
    """What Transformers can load for these settings: a local folder, or a hub name left as it is.

    Raises:
        ValueError: a path that does not exist, or a packaged model whose package is missing.
    """
    name = settings.model_name_or_path
    path = Path(name).expanduser()
    if settings.gguf_file:
        return str(converted(path / settings.gguf_file))
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ValueError(f"model folder {name!r} has no config.json; give the folder that holds a model's config")
        return str(path)
    if path.suffix == ".gguf":
        return str(converted(path))
    packaged = packaged_gguf(name)
    if packaged is not None:
        return str(converted(packaged))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ValueError(f"model folder {name!r} does not exist; check the path")
    return name


def load_config(settings: ModelSettings, source: str) -> Any:
    """The backbone's config with the settings' dropout, checked against ``model_backbone_type``; no weights are read.

    Raises:
        ValueError: no model is found, it is of another type (the message names the right one), or its attention has
            no dropout that could be set.
    """
    try:
        config = AutoConfig.from_pretrained(
            source, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        near = difflib.get_close_matches(source.lower(), PACKAGED_MODELS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"model {source!r} cannot be loaded: {hint}it is neither a folder with a readable config.json, nor a "
            f"packaged model ({', '.join(PACKAGED_MODELS)}), nor found on the hub from here ({_first_line(error)})"
        ) from error
    if settings.attention_dropout is not None:
        set_attention_dropout(config, settings.attention_dropout)
    stated = settings.model_backbone_type
    if stated is not None and stated != config.model_type:
        raise ValueError(
            f"model_backbone_type: {stated!r} is wrong for {settings.model_name_or_path!r}; use {config.model_type!r}"
        )
    return config


def load_causal_lm(settings: ModelSettings, source: str, config: Any) -> PreTrainedModel:
    """The causal LM with all of its weights.

    Raises:
        ValueError: the architecture is no causal LM, weights (those of adapters to be merged, too) are missing or
            damaged, or quantised loading is not possible on this machine.
    """
    quantization_config = _quantization_config(settings)
    require_adapters(settings.merged_adapters)  # before gigabytes are read
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype),
            device_map=settings.device_map,
            attn_implementation=settings.attn_implementation,
            quantization_config=quantization_config,
            revision=settings.revision,
            trust_remote_code=settings.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        # Transformers, safetensors and torch raise unrelated classes for a missing, truncated or mismatched file.
        raise ValueError(
            f"model {settings.model_name_or_path!r}: its weights cannot be loaded ({_first_line(error)}); "
            "check that model.safetensors is complete and belongs to config.json"
        ) from error
    model, info = loaded
    missing = sorted(info["missing_keys"]) + sorted(str(k) for k in info["mismatched_keys"])
    if missing:
        raise ValueError(
            f"model {settings.model_name_or_path!r}: {len(missing)} tensors are missing from its weights, first "
            f"{missing[0]!r}; get the complete checkpoint"
        )
    return model


def load_tokenizer(settings: ModelSettings, source: str) -> Any:
    """The tokenizer with a pad token (EOS where it has none: padding is masked, so any token will do).

    An adapter that ullme saved has the tokenizer beside it with which it was trained.

    Raises:
        ValueError: no tokenizer is found, or it has neither a pad nor an EOS token.
    """
    adapter = Path(settings.adapter_path or "")
    if settings.adapter_path and is_checkpoint(adapter) and (adapter / TOKENIZER_CONFIG_FILE).is_file():
        source = str(adapter)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"model {settings.model_name_or_path!r} has no tokenizer that loads ({_first_line(error)}); "
            "put the tokenizer's files beside config.json"
        ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"the tokenizer of {settings.model_name_or_path!r} has neither pad nor EOS token; set one in its config"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_rules(tokenizer: Any) -> Any:
    """The rules of a tokenizer as JSON values; what its last call left in it (padding, truncation) is none of them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return str(type(tokenizer))
    rules = json.loads(backend.to_str())
    return [{key: rules[key] for key in sorted(rules.keys() - {"padding", "truncation"})}, tokenizer.padding_side]


def _quantization_config(settings: ModelSettings) -> Any:
    if settings.quantization is None:
        return None
    if not torch.cuda.is_available():
        raise ValueError(f"quantization: {settings.quantization!r} needs a GPU with bitsandbytes; leave it out here")
    from transformers import BitsAndBytesConfig

    if settings.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
