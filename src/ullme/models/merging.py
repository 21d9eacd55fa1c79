"""Adapters of earlier training stages, merged into the base before a new one is put in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft.utils.save_and_load import SAFETENSORS_WEIGHTS_NAME
from transformers import PreTrainedModel

from ullme.models.lora import ADAPTER_CONFIG, load_adapter
from ullme.models.tensors import same_signature, signature

#: ``ullme.json`` of a checkpoint, and in it the digests of the adapters under the saved one.
SETTINGS_FILE, MERGED_KEY = "ullme.json", "merged_adapters"


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
        _require_its_base(causal_lm, folder, digests)
        merged = load_adapter(causal_lm, folder).merge_and_unload()
        assert merged is causal_lm, "peft put the merged weights elsewhere"
        digests.append(_digest(folder))
    for name, parameter in causal_lm.named_parameters():
        parameter.requires_grad_(trainable[name])
    return tuple(digests)


def require_same_merged(origin: str, own: Sequence[str], saved: Sequence[str], folders: Sequence[str]) -> None:
    """Pass if a model has the very adapters under it, in their order, on which a checkpoint was trained.

    Raises:
        ValueError: it has not; the message says which are wanted.
    """
    if tuple(own) == tuple(saved):
        return
    different = [f for f, a, b in zip(folders, own, saved, strict=False) if a != b]
    found = f"{different[0]!r} is another adapter" if different else f"{len(own)} are merged into this model"
    raise ValueError(
        f"merged_adapters: {origin} was trained on {len(saved)} earlier adapter(s), and {found}; give the folders of "
        "those it was trained on, in their order"
    )


def _require_its_base(causal_lm: PreTrainedModel, folder: Path, earlier: Sequence[str]) -> None:
    """Raise if a checkpoint of ours was trained on another base than the causal LM as it is by now."""
    place = folder / SETTINGS_FILE
    if not place.is_file():  # a plain peft adapter says nothing about its base
        return
    try:
        content: dict[str, Any] = json.loads(place.read_text())
        expected, saved = content["base_signature"], content.get(MERGED_KEY, ())
    except (ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{str(place)!r} is truncated or no checkpoint ({error}); use another one") from error
    require_same_merged(f"{str(folder)!r}", earlier, saved, ())
    if not same_signature(signature(causal_lm), expected, len(saved)):
        raise ValueError(
            f"merged_adapters: {str(folder)!r} was trained on other weights than {causal_lm.name_or_path!r}; merge it "
            "into its own base"
        )


def _digest(folder: Path) -> str:
    """A hash of what an adapter adds to its base: its weights, and how they are scaled."""
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    kept = {name: value for name, value in config.items() if name not in _PLACES}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    with (folder / SAFETENSORS_WEIGHTS_NAME).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


#: Keys of an adapter's config that say where it comes from.
_PLACES = ("base_model_name_or_path", "revision", "inference_mode", "peft_version")
