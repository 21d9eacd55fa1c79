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
from ullme.models.lora import load_adapter_weights
from ullme.models.merging import MERGED_KEY, SETTINGS_FILE, require_same_merged
from ullme.models.settings import ModelSettings
from ullme.models.tensors import read_safetensors, require_same_tensors, same_signature, signature

if TYPE_CHECKING:
    from ullme.models.ullme import ULLME

POOLER_FILE = "pooler.safetensors"
FORMAT = 1

#: Settings that say where and how to run, not what the embedding is.
_RUN_SETTINGS = (
    *("model_name_or_path", "adapter_path", "merged_adapters", "gguf_file", "device_map", "gradient_checkpointing"),
    *("lora_name", "attention_dropout"),
)


def save(model: ULLME, folder: Path) -> None:
    """Write a checkpoint beside its place and move it there; an interrupted save leaves the old one."""
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
    settings = {**content["settings"], **overrides}
    if content["base_signature"] is None:
        settings["model_name_or_path"] = str(folder)
        settings["gguf_file"] = None
        settings["merged_adapters"] = ()  # in the weights already
    model = cls(**ModelSettings.from_dict(settings, str(folder / SETTINGS_FILE)).to_dict())
    load_weights(model, folder)
    return model.eval()


def load_weights(model: ULLME, folder: Path) -> None:
    """Put a checkpoint's adapter and pooler into a model built from its settings.

    Raises:
        ValueError: the checkpoint was made for another base, pooling or adapter shape, or is damaged.
    """
    content = read_settings(folder)
    expected = content["base_signature"]
    if expected is not None:
        _require_base(model, folder, content)
        assert model.peft_model is not None
        load_adapter_weights(model.peft_model, folder)
    if model.pooler.has_weights:
        saved, own = read_safetensors(folder / POOLER_FILE), model.pooler.state_dict()
        require_same_tensors(f"checkpoint {str(folder)!r}", saved, own)
        model.pooler.load_state_dict(saved)


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of ``ullme.json``; ValueError if the folder is no checkpoint of ours."""
    path = folder / SETTINGS_FILE
    if not path.is_file():
        raise ValueError(f"checkpoint {str(folder)!r}: no {SETTINGS_FILE} there; give a folder saved by ullme")
    try:
        content = json.loads(path.read_text())
        missing = {"format", "settings", "base_model_type", "base_signature"} - content.keys()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is truncated or no JSON object ({error}); use another checkpoint") from error
    if missing:
        raise ValueError(f"{str(path)!r} lacks {sorted(missing)}; use a complete checkpoint")
    if content["format"] != FORMAT:
        raise ValueError(f"{str(path)!r}: format {content['format']} is newer than {FORMAT}; update ullme")
    return content


def fingerprint(settings: ModelSettings, weights: str) -> str:
    """A hash of all that decides an embedding, and of nothing that only says where the model lies."""
    decisive = {k: v for k, v in settings.to_dict().items() if k not in _RUN_SETTINGS}
    if is_import_path(settings.pooling):
        decisive["pooling_source"] = source_digest(settings.pooling, "pooling")
    text = json.dumps({**decisive, "weights": weights}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _require_base(model: ULLME, folder: Path, content: dict[str, Any]) -> None:
    if model.peft_model is None:
        raise ValueError(f"checkpoint {str(folder)!r} holds an adapter but the model has none; give lora_name")
    if content["base_model_type"] != model.config.model_type:
        raise ValueError(
            f"checkpoint {str(folder)!r} was made for a {content['base_model_type']!r} model, not "
            f"{model.config.model_type!r}; load it on its own base, {content['settings']['model_name_or_path']!r}"
        )
    folders = model.settings.merged_adapters
    require_same_merged(f"checkpoint {str(folder)!r}", model.merged, content.get(MERGED_KEY, ()), folders)
    quantized = model.settings.quantization or content["settings"]["quantization"]
    if not quantized and not same_signature(signature(model.causal_lm), content["base_signature"], len(model.merged)):
        raise ValueError(
            f"checkpoint {str(folder)!r} was made for other weights than {model.settings.model_name_or_path!r}; "
            f"load it on its own base, {content['settings']['model_name_or_path']!r}"
        )


def _portable(settings: ModelSettings) -> ModelSettings:
    """Settings that load this checkpoint: an adapter that was loaded from elsewhere is now in the folder itself."""
    lora_name = (settings.lora_name or "adapter") if settings.has_adapter else None
    merged = settings.merged_adapters if settings.has_adapter else ()  # full weights hold them
    return replace(settings, adapter_path=None, device_map=None, lora_name=lora_name, merged_adapters=merged)


def _replace_folder(new: Path, place: Path) -> None:
    if not place.exists():
        new.replace(place)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}-old-", dir=place.parent)) / "old"
    place.replace(old)
    new.replace(place)
    shutil.rmtree(old.parent, ignore_errors=True)
