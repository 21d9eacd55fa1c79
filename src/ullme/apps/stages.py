"""What runs of several stages need: hidden tokens, dropout where a text is its own positive, the original LLM."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ullme.config import RunConfig
from ullme.data import PairDataset, TokenMasking
from ullme.models import ULLME, ModelSettings
from ullme.models.dropout import dropout_of
from ullme.models.loading import load_config, resolve
from ullme.models.lora import ADAPTER_CONFIG
from ullme.objectives import MNTP
from ullme.types import PairExample


def token_masking(config: RunConfig, tokenizer: Any) -> TokenMasking | None:
    """How the run's objectives want tokens hidden; None where none wants it.

    Raises:
        ValueError: two of them want different things, or the mask token is no single token.
    """
    wanting = [o for o in config.objectives if "masked" in o.needs]
    ways = {(o.mask_probability, o.mask_token, o.replacement) for o in wanting if isinstance(o, MNTP)}
    if len(ways) > 1:
        raise ValueError(f"objectives: two mntp terms hide tokens differently, {sorted(ways, key=str)}; keep one way")
    default = MNTP()
    for probability, mask_token, replacement in ways:
        return TokenMasking.for_tokenizer(tokenizer, probability, mask_token, replacement)
    if not wanting:
        return None
    return TokenMasking.for_tokenizer(tokenizer, default.mask_probability, default.mask_token, default.replacement)


def require_dropout(config: RunConfig, dataset: PairDataset) -> None:
    """Raise if a source has nothing but texts that are their own positives, and nothing tells the two apart.

    That is unsupervised SimCSE (Gao et al. 2021, section 3), whose two views of a text are two dropout masks: without
    dropout they are one and the same embedding, and nothing draws anything together.

    Raises:
        ValueError: such a source, with its cure.
    """
    contrast = [o.type for o in config.objectives if o.couples_batch and o.weight and "embedding" in o.needs]
    if not contrast or config.data.passage_prompt != config.model.prompts.get("query", ""):
        return
    own = [n for n, rows in zip(dataset.sources, dataset.source_rows(), strict=True) if _all_own(dataset, rows)]
    if own and not _drops(config.model.settings()):
        raise ValueError(
            f"model.lora.dropout: is 0, and every row of {own[0]} is its own positive, whose two embeddings only "
            f"dropout tells apart, so that {contrast[0]} cannot learn from them; set model.lora.dropout or "
            "model.attention_dropout (say 0.1), or train on pairs"
        )


def original_model(config: RunConfig, model: ULLME) -> ULLME:
    """The model itself, or where adapters were merged into it, the LLM as it was before them: a second copy."""
    if not model.merged:
        return model
    bare = replace(config.model.settings(), merged_adapters=(), lora_name=None, adapter_path=None)
    return ULLME(**bare.to_dict())


def _all_own(dataset: PairDataset, rows: range) -> bool:
    return all(_is_own(dataset[i]) for i in rows)  # ends at the first pair


def _is_own(example: PairExample) -> bool:
    return example.query in example.positives and not example.instruction


def _drops(settings: ModelSettings) -> bool:
    """Whether a model with these settings drops anything in training; its config is read, no weights."""
    if settings.lora_name and settings.lora_dropout:
        return True
    kept = Path(settings.adapter_path or "") / ADAPTER_CONFIG
    if settings.adapter_path and kept.is_file() and json.loads(kept.read_text()).get("lora_dropout"):
        return True
    return bool(dropout_of(load_config(settings, resolve(settings))))
