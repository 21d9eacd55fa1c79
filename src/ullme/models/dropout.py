"""Dropout that an architecture brings, and the attention dropout that a run asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What configs call the dropout of attention weights, the usual name first.
_NAMES = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")

#: Architectures whose config has the field and whose attention does not heed it, and why (measured, transformers 5.23).
_UNHEEDED: Mapping[str, str] = {
    "falcon": "its attention ignores the config's attention_dropout",
    "diffllama": "differential attention takes no dropout",
}

#: Dropout of heads that no embedding comes through.
_OTHER_HEADS = ("classifier", "summary")


def set_attention_dropout(config: Any, probability: float) -> None:
    """Let a model built from this config drop attention weights with this probability, in train mode only.

    Raises:
        ValueError: the architecture has no such dropout.
    """
    text_config = config.get_text_config(decoder=True)
    kind = text_config.model_type
    for name in _NAMES:
        if hasattr(text_config, name) and kind not in _UNHEEDED:
            setattr(text_config, name, probability)
            return
    reason = _UNHEEDED.get(kind, "its config has no such field")
    raise ValueError(
        f"attention_dropout: {probability} cannot be set for model type {kind!r}, {reason}; use lora_dropout instead"
    )


def dropout_of(config: Any) -> dict[str, float]:
    """The dropout probabilities above 0 in a config, by field."""
    return {
        name: float(value)
        for name, value in config.get_text_config(decoder=True).to_dict().items()
        if "drop" in name
        and not name.startswith(_OTHER_HEADS)
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and value > 0
    }
