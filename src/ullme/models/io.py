"""Checkpoints of ULLME: safetensors and ``ullme.json``, written atomically, read whole or not at all.

A folder holds ``ullme.json`` (settings, a signature of the base with earlier adapters merged in, and the digests of
these), the tokenizer, and either a peft adapter (``adapter_model.safetensors``) or all weights
(``model.safetensors``); a pooler that learns is in ``pooler.safetensors``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from ullme.extension import is_import_path, source_digest
from ullme.files import aside
from ullme.models.checkpoint import FORMAT, MERGED_KEY, SETTINGS_FILE, is_checkpoint, read_settings, require_base
from ullme.models.loading import tokenizer_rules
from ullme.models.lora import adapter_settings, decisive_config, load_adapter_weights, sort_module_names
from ullme.models.settings import ModelSettings
from ullme.models.tensors import read_safetensors, require_same_tensors, signature, weights_digest

if TYPE_CHECKING:
    from ullme.models.ullme import ULLME

POOLER_FILE = "pooler.safetensors"

#: Settings of a new adapter: a loaded one has its own.
_ADAPTER_SETTINGS = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
#: Settings that say where and how to run, not what the embedding is.
_RUN_SETTINGS = (
    *("model_name_or_path", "adapter_path", "merged_adapters", "gguf_file", "device_map", "gradient_checkpointing"),
    *("lora_name", "attention_dropout", *_ADAPTER_SETTINGS),
)


def save(model: ULLME, folder: Path) -> None:
    """Write a checkpoint beside its place and move it there; an interrupted save leaves the old one.

    Raises:
        ValueError: the place holds something else than an earlier checkpoint, or the base of this one.
    """
    folder = folder.resolve()
    _require_free(model, folder)
    with aside(folder) as unfinished:
        write_files(model, unfinished)
        unfinished.chmod(0o755)
        _replace_folder(unfinished, folder)


def write_files(model: ULLME, folder: Path) -> None:
    """Write the checkpoint's files into an existing folder, ``ullme.json`` last."""
    model.tokenizer.save_pretrained(folder)
    if model.peft_model is not None:
        model.peft_model.save_pretrained(str(folder))
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
        sort_module_names(folder)
    else:
        model.causal_lm.save_pretrained(folder)
    if model.pooler.has_weights:
        save_file(model.pooler.state_dict(), folder / POOLER_FILE)
    content = {
        "format": FORMAT,
        "settings": _portable(model.settings).to_dict(),
        "base_model_type": model.config.model_type,
        "base_signature": signature(model.causal_lm) if model.peft_model is not None else None,
        MERGED_KEY: list(model.merged) if model.peft_model is not None else [],
    }
    (folder / SETTINGS_FILE).write_text(json.dumps(content, indent=2) + "\n")


def load(cls: type[ULLME], folder: Path, overrides: dict[str, Any]) -> ULLME:
    """A model from a checkpoint folder, in eval mode; see :meth:`ULLME.from_pretrained`."""
    content = read_settings(folder)
    origin = str(folder / SETTINGS_FILE)
    saved = ModelSettings.from_dict(content["settings"], origin)
    settings = ModelSettings.from_dict({**content["settings"], **overrides}, origin)
    if saved.has_adapter:
        _require_own_adapter(folder, saved, settings)
    model = cls(**where_it_lies(settings, folder, saved.has_adapter).to_dict())
    finish_loading(model, folder, settings if saved.has_adapter else model.settings)
    return model


def where_it_lies(settings: ModelSettings, folder: Path, adapter: bool) -> ModelSettings:
    """Settings that build the model of a checkpoint: with the adapter in its folder, or from the weights there."""
    if adapter:
        return replace(settings, lora_name=None, adapter_path=str(folder))
    return replace(settings, model_name_or_path=str(folder), gguf_file=None, merged_adapters=())  # in its weights


def finish_loading(model: ULLME, folder: Path, settings: ModelSettings) -> None:
    """Give a model that was built from a checkpoint's folder its pooler and settings, and put it in eval mode."""
    model.settings = settings
    load_pooler(model, folder)
    model.eval()


def continue_adapter(model: ULLME, folder: Path) -> None:
    """Take over what decides the embeddings of an adapter beside its weights: its numbers, and its trained pooler."""
    assert model.peft_model is not None
    model.settings = adapter_settings(model.settings, model.peft_model)
    if (folder / POOLER_FILE).is_file():
        load_pooler(model, folder)


def load_weights(model: ULLME, folder: Path) -> None:
    """Put a checkpoint's adapter and pooler into a model built from its settings.

    Raises:
        ValueError: the checkpoint was made for another base, pooling or adapter shape, or is damaged.
    """
    content = read_settings(folder)
    if content["base_signature"] is not None:
        origin = f"checkpoint {str(folder)!r}"
        if model.peft_model is None:
            raise ValueError(f"{origin} holds an adapter but the model has none; give lora_name")
        settings = model.settings
        quantized = settings.quantization is not None
        require_base(origin, model.causal_lm, content, model.merged, settings.merged_adapters, quantized)
        load_adapter_weights(model.peft_model, folder)
    load_pooler(model, folder)


def load_pooler(model: ULLME, folder: Path) -> None:
    """Give a pooler that learns the weights in a folder; ValueError if they are missing or of another one."""
    if model.pooler.has_weights:
        saved, own = read_safetensors(folder / POOLER_FILE), model.pooler.state_dict()
        require_same_tensors(f"checkpoint {str(folder)!r}", saved, own)
        model.pooler.load_state_dict(saved)


def fingerprint(model: ULLME) -> str:
    """A hash of all that decides an embedding, and of nothing that only says where the model lies."""
    settings = model.settings
    decisive = {k: v for k, v in settings.to_dict().items() if k not in _RUN_SETTINGS}
    decisive |= {"weights": weights_digest(model), "tokenizer": tokenizer_rules(model.tokenizer)}
    if model.peft_model is not None:
        decisive["adapter"] = decisive_config(model.peft_model)
    if settings.chat_template:
        decisive["chat_template_text"] = model.tokenizer.chat_template
    if is_import_path(settings.pooling):
        decisive["pooling_source"] = source_digest(settings.pooling, "pooling")
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def _portable(settings: ModelSettings) -> ModelSettings:
    """Settings that load this checkpoint: an adapter that was loaded from elsewhere is now in the folder itself."""
    lora_name = (settings.lora_name or "adapter") if settings.has_adapter else None
    merged = settings.merged_adapters if settings.has_adapter else ()  # full weights hold them
    return replace(settings, adapter_path=None, device_map=None, lora_name=lora_name, merged_adapters=merged)


def _require_own_adapter(folder: Path, saved: ModelSettings, settings: ModelSettings) -> None:
    """Raise if an adapter that is loaded is said to be another than it is."""
    for name in _ADAPTER_SETTINGS:
        if getattr(settings, name) != getattr(saved, name):
            raise ValueError(
                f"{name}: {getattr(settings, name)!r} is not what the adapter in {str(folder)!r} has; leave it out"
            )


def _require_free(model: ULLME, place: Path) -> None:
    """Raise unless nothing but an earlier checkpoint would make room for a model's."""
    if not place.exists() or place.is_dir() and not any(place.iterdir()):
        return
    base = Path(model.settings.model_name_or_path).expanduser()
    if not is_checkpoint(place):
        raise ValueError(f"save_pretrained: {str(place)!r} holds other files, which would be lost; name a new folder")
    if model.settings.has_adapter and base.exists() and base.samefile(place):
        raise ValueError(f"save_pretrained: {str(place)!r} is the base of this adapter; name another folder")


def _replace_folder(new: Path, place: Path) -> None:
    if not place.exists():
        new.replace(place)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}-old-", dir=place.parent)) / "old"
    place.replace(old)
    new.replace(place)
    shutil.rmtree(old.parent, ignore_errors=True)
