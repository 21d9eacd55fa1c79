"""Adapters of earlier training stages, merged into the base before a new one is put in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from peft.utils.save_and_load import SAFETENSORS_WEIGHTS_NAME
from transformers import PreTrainedModel

from ullme.models.checkpoint import is_checkpoint, read_settings, require_base
from ullme.models.lora import ADAPTER_CONFIG, PLACES, load_adapter


def require_adapters(folders: Sequence[str]) -> None:
    """Raise unless an adapter lies in every one of these folders.

    Raises:
        ValueError: one is missing; the message says how to name its new place.
    """
    for folder in map(Path, folders):
        for name in (ADAPTER_CONFIG, SAFETENSORS_WEIGHTS_NAME):
            if not (folder / name).is_file():
                raise ValueError(
                    f"merged_adapters: {str(folder)!r} has no {name}; run the stage that trains this adapter first, or "
                    "if it has moved, give its new place: merged_adapters=[...], in the same order"
                )


def merge_adapters(causal_lm: PreTrainedModel, folders: Sequence[str]) -> tuple[str, ...]:
    """Add saved adapters to the weights of the causal LM, in this order, and return the digest of each.

    Each folder is a checkpoint of ours or a plain peft adapter. The sum is rounded to the dtype of the weights. What
    was trainable still is; nothing else is left of the adapters.

    Raises:
        ValueError: a folder has no adapter for this model, or one that was trained on other weights or after other
            adapters.
    """
    trainable = {name: parameter.requires_grad for name, parameter in causal_lm.named_parameters()}
    digests: list[str] = []
    for folder in map(Path, folders):
        if is_checkpoint(folder):  # a plain peft adapter says nothing about its base
            require_base(f"merged_adapters: {str(folder)!r}", causal_lm, read_settings(folder), digests)
        merged = load_adapter(causal_lm, folder).merge_and_unload()
        assert merged is causal_lm, "peft put the merged weights elsewhere"
        digests.append(_digest(folder))
    for name, parameter in causal_lm.named_parameters():
        parameter.requires_grad_(trainable[name])
    return tuple(digests)


def _digest(folder: Path) -> str:
    """A hash of what an adapter adds to its base: its weights, and how they are scaled."""
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    kept = {name: value for name, value in config.items() if name not in PLACES}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    with (folder / SAFETENSORS_WEIGHTS_NAME).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
