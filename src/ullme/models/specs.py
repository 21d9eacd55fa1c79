"""What an architecture does differently from the plain Transformers conventions: one row per exception.

Keys are the ``model_type`` of a config. Everything here was measured by ``ullme check --all`` (docs/architectures.md);
an architecture without a row follows the conventions, or is refused by the probe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

Mechanism = Literal["argument", "mask", "config", "buffer"]

#: In the order in which they are tried where no row says which. "argument": the call's ``is_causal=False``. "mask": an
#: explicit 4D mask per kind of layer. "config": ``config.is_causal`` for the length of the call. "buffer": the class
#: keeps its causal triangle in a buffer, which the call replaces.
MECHANISMS: tuple[Mechanism, ...] = ("argument", "mask", "config", "buffer")

SPECS: Mapping[str, Mechanism] = {
    "bloom": "config",  # ignores the argument, and builds ALiBi from the 2D mask
    "codegen": "mask",  # heeds only the config's attribute
    "falcon": "mask",  # heeds only the config's attribute
    "gpt_neo": "buffer",  # a triangle per layer, cut to a band in local layers, whatever the mask
    "gpt_neox_japanese": "mask",  # heeds only the config's attribute
    "gptj": "mask",  # heeds only the config's attribute
    "llama4": "mask",  # the chunked mask ignores the argument
    "llama4_text": "mask",
    "mpt": "mask",  # ignores the argument, and fails on the config's attribute without padding
    "nemotron": "mask",  # does not hand the argument to its attention, so SDPA stays causal without padding
    "openai-gpt": "buffer",  # a triangle per layer, whatever the mask
    "stablelm": "mask",  # as nemotron
}

_STATE = "carries the past in a state and cannot see the future"
REFUSED_LAYERS: Mapping[str, str] = {
    "linear_attention": _STATE,
    "mamba": _STATE,
    "mamba2": _STATE,
    "recurrent": _STATE,
    "conv": "is a causal convolution and cannot see the future",
    "hybrid": "joins attention to a recurrent or convolutional path that cannot see the future",
    "hybrid_sliding": "joins attention to a convolutional path that cannot see the future",
    "minimax_m3_sparse": "attends to selected blocks of the past, cut by absolute position",
    "compressed_sparse_attention": "attends to compressed blocks of the past, cut by absolute position",
    "heavily_compressed_attention": "attends to compressed blocks of the past, cut by absolute position",
}

#: Architectures whose config does not list its layers: kind of layer, and why it is refused.
REFUSED_TYPES: Mapping[str, tuple[str, str]] = {
    "bert-generation": ("encoder", "is the encoder of an encoder-decoder"),
    "blt": ("byte-patch", "groups bytes into patches with an encoder and a decoder of its own"),
    "cpmant": ("prefix-LM", "is bidirectional in its prompt already and numbers positions by its own segments"),
    "gemma4_assistant": ("draft", "drafts from the hidden states of another model"),
    "gemma4_unified_assistant": ("draft", "drafts from the hidden states of another model"),
    "git": ("image-captioning decoder", "reads an image before its text"),
    "moshi": ("audio decoder", "predicts audio codes beside its text"),
    "musicgen": ("audio decoder", "predicts audio codes, not text"),
    "musicgen_melody": ("audio decoder", "predicts audio codes, not text"),
    "reformer": ("LSH attention", "buckets the past and needs texts of a fixed length"),
    "rwkv": ("recurrent", _STATE),
    "trocr": ("decoder of an encoder-decoder", "reads an image encoder"),
    "whisper": ("decoder of an encoder-decoder", "reads an audio encoder"),
    "xlnet": ("permutation-LM encoder", "is bidirectional already"),
    "xlstm": ("recurrent", _STATE),
}

#: Architectures that fail on a text longer than the positions they count, by the field of the config that counts them.
COUNTED_POSITIONS: Mapping[str, str] = {
    **dict.fromkeys(("biogpt", "codegen", "ctrl", "gpt2", "gpt_bigcode"), "max_position_embeddings"),
    **dict.fromkeys(("gpt_neo", "gptj", "openai-gpt", "opt"), "max_position_embeddings"),
    "mpt": "max_seq_len",
}


def most_positions(config: Any) -> int | None:
    """Tokens of a text that this architecture can read at most; None where it counts no positions."""
    field = COUNTED_POSITIONS.get(config.model_type)
    return None if field is None else getattr(config, field)


def require_positions(config: Any, tokens: int) -> None:
    """Pass if the model can read so many tokens at once: max_length's, or a query's with its passage.

    Raises:
        ValueError: it cannot.
    """
    positions = most_positions(config)
    if positions is not None and tokens > positions:
        raise ValueError(
            f"max_length: a text of {tokens} tokens is more than the {positions} positions of {config.model_type!r}; "
            "set a smaller max_length (half of them where passages are scored after their query)"
        )


def refusal(config: Any) -> tuple[str, str] | None:
    """The kind of layer for which this architecture is refused and why, or None."""
    name = config.model_type
    if name in REFUSED_TYPES:
        return REFUSED_TYPES[name]
    if name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and not hasattr(config, "text_config"):
        return "decoder of an encoder-decoder", "was trained to read an encoder"
    if name in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "encoder", "is bidirectional already; sentence-transformers serves it as it is"
    for kind in layer_kinds(config):
        if kind in REFUSED_LAYERS:
            return kind, REFUSED_LAYERS[kind]
    return None


def layer_kinds(config: Any) -> tuple[str, ...]:
    """The kinds of layer that the config lists, in order of appearance; empty where it lists none."""
    text_config = config.get_text_config(decoder=True)
    for field in ("layer_types", "layers_block_type", "block_types"):
        kinds = getattr(text_config, field, None)
        if kinds:
            return tuple(dict.fromkeys(kinds))
    return ()


HeadTransform = Callable[[Tensor], Tensor]


def _times(field: str) -> Callable[[Any], HeadTransform]:
    return lambda config: lambda logits: logits * getattr(config, field)


def _over(field: str) -> Callable[[Any], HeadTransform]:
    return lambda config: lambda logits: logits / getattr(config, field)


def _softcap(field: str) -> Callable[[Any], HeadTransform | None]:
    def of(config: Any) -> HeadTransform | None:
        cap = getattr(config, field, None)
        return (lambda logits: torch.tanh(logits / cap) * cap) if cap is not None else None

    return of


#: What the causal LM does to the logits after its output embedding, by model type.
HEADS: Mapping[str, Callable[[Any], HeadTransform | None]] = {
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe", "cohere_compass_text"), _times("logit_scale")),
    **dict.fromkeys(("granite", "granite_swa", "granitemoe", "granitemoe_swa"), _over("logits_scaling")),
    **dict.fromkeys(("granitemoehybrid", "granitemoeshared", "minicpm3"), _over("logits_scaling")),
    "hyperclovax": _times("logits_scaling"),
    "inkling_text": _over("logits_mup_width_multiplier"),
    **dict.fromkeys(("gemma2", "gemma3_text", "vaultgemma"), _softcap("final_logit_softcapping")),
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"), _softcap("final_logit_softcapping")),
    **dict.fromkeys(("gemma4_unified", "gemma4_unified_text"), _softcap("final_logit_softcapping")),
    **dict.fromkeys(("beam", "nanochat"), _softcap("final_logit_softcapping")),
}


def head_transform(config: Any) -> HeadTransform | None:
    """What the causal LM does to the logits (..., V) after its head: a scale, a soft cap, or nothing."""
    row = HEADS.get(config.model_type)
    return row(config.get_text_config(decoder=True)) if row is not None else None


#: Modules that hidden states pass before the output embedding, by model type.
BEFORE_HEAD: Mapping[str, str] = {"modernbert-decoder": "lm_head"}


@dataclass(frozen=True)
class LogitsHead:
    """From last hidden states (..., D) to the logits (..., V) of the causal LM itself.

    Attributes:
        embedding: the output embedding, its adapter included.
        vocabulary: how many logits there are.
        before: the module that hidden states pass first, if any.
        transform: what happens to the logits afterwards, if anything.
    """

    embedding: nn.Module
    vocabulary: int
    before: nn.Module | None = None
    transform: HeadTransform | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """The logits, each module called as a module: wrappers gather a sharded weight in its hooks."""
        logits = self.embedding(hidden if self.before is None else self.before(hidden))
        return logits if self.transform is None else self.transform(logits)

    @property
    def trainable(self) -> bool:
        """Whether any weight that the logits pass needs a gradient."""
        modules = [m for m in (self.before, self.embedding) if m is not None]
        return any(p.requires_grad for module in modules for p in module.parameters())

    @property
    def plain(self) -> nn.Linear | None:
        """The linear layer that this head is; None where it is more, or its weight is in parts on several devices."""
        linear = self.embedding
        if self.before is not None or self.transform is not None or type(linear) is not nn.Linear:
            return None  # a sharding wrapper changes the class, or empties the weight
        return linear if linear.weight.shape[0] == self.vocabulary else None


def logits_head(causal_lm: PreTrainedModel) -> LogitsHead | None:
    """The causal LM's way from hidden states to logits; None where it has no head.

    The probe compares the two when a model is loaded (``AttentionSwitch.head_reproduced``).
    """
    embedding = causal_lm.get_output_embeddings()
    if embedding is None:
        return None
    config = causal_lm.config
    path = BEFORE_HEAD.get(config.model_type)
    return LogitsHead(
        embedding=embedding,
        vocabulary=config.get_text_config(decoder=True).vocab_size,
        before=causal_lm.get_submodule(path) if path else None,
        transform=head_transform(config),
    )
