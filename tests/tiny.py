"""Tiny random models and tokenizers, built offline from configs in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from ullme.models import ULLME

SENTENCES = [
    "The cat sat on the mat and looked out of the window.",
    "A query asks for a passage; the passage answers the query.",
    "Gradient caching trades computation for memory.",
    "Bidirectional attention lets an early token see a late one.",
    "Sliding windows limit how far a token can look back.",
    "Parse a date from a string and return it.",
]

_SIZES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gpt2": {"max_position_embeddings": 640},
    "phi": {"num_key_value_heads": 2},
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with BOS, EOS and pad, trained on a few sentences: any text has ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )


def tiny_config(model_type: str, **changes: Any) -> Any:
    """The config of a model with two layers and width 32; ``changes`` win."""
    sizes = {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return AutoConfig.for_model(model_type, **{**sizes, **_SIZES[model_type], **changes})


def tiny_folder(folder: Path, model_type: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """A saved tiny model with tokenizer, as a user's local model folder."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **changes))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_ullme(
    folder: Path, model_type: str = "llama", changes: dict[str, Any] | None = None, **settings: Any
) -> ULLME:
    """A ULLME on a tiny model written into ``folder``, its LoRA weights random so that the adapter matters."""
    path = folder / model_type
    with torch.random.fork_rng(devices=[]):  # the same adapter whoever asks, and whoever asked before
        if not path.exists():
            tiny_folder(path, model_type, **(changes or {}))
        torch.manual_seed(0)
        model = ULLME(str(path), max_length=settings.pop("max_length", 64), **settings)
    randomise_adapter(model)
    return model


def randomise_adapter(model: ULLME, seed: int = 1) -> None:
    """Give LoRA's B matrices, which start at zero, random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
