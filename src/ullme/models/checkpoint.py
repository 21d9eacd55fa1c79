"""What ``ullme.json`` says of a checkpoint, and whether a causal LM is the one that it was made for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ullme.models.settings import ModelSettings
from ullme.models.tensors import same_signature, signature

#: The file, and in it the digests of the adapters under the saved one.
SETTINGS_FILE, MERGED_KEY = "ullme.json", "merged_adapters"
FORMAT = 1


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder was saved by ullme."""
    return (folder / SETTINGS_FILE).is_file()


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


def require_base(
    origin: str,
    causal_lm: PreTrainedModel,
    content: Mapping[str, Any],
    merged: Sequence[str],
    folders: Sequence[str] = (),
    quantized: bool = False,
) -> None:
    """Pass if a causal LM is the one that a checkpoint's adapter was trained on.

    Args:
        origin: what the checkpoint is called in the error.
        causal_lm: with or without an adapter in it, which is not looked at.
        content: of the checkpoint's ``ullme.json``.
        merged: digests of the earlier stages' adapters in the causal LM's weights.
        folders: where these were.
        quantized: the weights are quantised and cannot be compared.

    Raises:
        ValueError: it is not; the message says which is wanted.
    """
    own = content["settings"]["model_name_or_path"]
    if content["base_model_type"] != causal_lm.config.model_type:
        raise ValueError(
            f"{origin} was made for a {content['base_model_type']!r} model, not {causal_lm.config.model_type!r}; use "
            f"it with its own base, {own!r}"
        )
    saved = content.get(MERGED_KEY, ())
    _require_same_merged(origin, merged, saved, folders)
    if quantized or content["settings"].get("quantization"):
        return
    if not same_signature(signature(causal_lm), content["base_signature"], len(saved)):
        raise ValueError(
            f"{origin} was made for other weights than {causal_lm.name_or_path!r}; use it with its own base, {own!r}"
        )


def require_adapters_base(causal_lm: PreTrainedModel, settings: ModelSettings, merged: Sequence[str]) -> None:
    """Pass if an adapter of ours at ``adapter_path`` was trained on this causal LM; a plain one does not say.

    Raises:
        ValueError: as ``require_base``.
    """
    folder = Path(settings.adapter_path or "")
    if settings.adapter_path and is_checkpoint(folder):
        origin, quantized = f"adapter {str(folder)!r}", settings.quantization is not None
        require_base(origin, causal_lm, read_settings(folder), merged, settings.merged_adapters, quantized)


def _require_same_merged(origin: str, own: Sequence[str], saved: Sequence[str], folders: Sequence[str]) -> None:
    if tuple(own) == tuple(saved):
        return
    different = [f for f, a, b in zip(folders, own, saved, strict=False) if a != b]
    found = f"{different[0]!r} is another adapter" if different else f"{len(own)} are merged into this model"
    raise ValueError(
        f"merged_adapters: {origin} was trained on {len(saved)} earlier adapter(s), and {found}; give the folders of "
        "those it was trained on, in their order"
    )
