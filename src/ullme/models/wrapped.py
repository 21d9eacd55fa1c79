"""WrappedULLME: a model for inference and evaluation, from a base and an optional checkpoint (paper, Listing 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ullme.models.io import SETTINGS_FILE, load_weights, read_settings
from ullme.models.settings import ModelSettings
from ullme.models.ullme import ULLME


class WrappedULLME(ULLME):
    """A ULLME in eval mode, with the weights of a checkpoint if one is given.

    Settings that are not stated are the checkpoint's; one that is stated and decides the embedding must equal the
    checkpoint's. Without a checkpoint it is the base model: a fresh adapter changes nothing.

    Raises:
        ValueError: as :class:`ULLME`, or a stated setting contradicts the checkpoint.
    """

    def __init__(
        self,
        model_name_or_path: str,
        model_backbone_type: str | None = None,
        *,
        model_checkpoint: str | Path | None = None,
        **settings: Any,
    ) -> None:
        if model_checkpoint is not None:
            settings = _with_checkpoint(Path(model_checkpoint), str(model_name_or_path), settings)
            model_name_or_path = settings.pop("model_name_or_path")
        super().__init__(model_name_or_path, model_backbone_type, **settings)
        if model_checkpoint is not None:
            load_weights(self, Path(model_checkpoint))
        self.eval()


#: Settings of a checkpoint that a caller may not contradict: they shape its weights or decide its embeddings.
_DECISIVE = (
    "lora_r",
    "lora_alpha",
    "lora_target_modules",
    "pooling",
    "attention",
    "window",
    "append_eos",
    "echo",
    "chat_template",
)


def _with_checkpoint(folder: Path, base: str, stated: dict[str, Any]) -> dict[str, Any]:
    content = read_settings(folder)
    saved = ModelSettings.from_dict(content["settings"], str(folder / SETTINGS_FILE)).to_dict()
    for name in _DECISIVE:
        if name in stated and stated[name] != saved[name]:
            raise ValueError(
                f"{name}: {stated[name]!r} contradicts the checkpoint {str(folder)!r}, made with {saved[name]!r}; "
                "leave it out or use another checkpoint"
            )
    del saved["model_backbone_type"]
    if content["base_signature"] is None:  # all weights, earlier stages' adapters in them
        return {**saved, **stated, "model_name_or_path": str(folder), "merged_adapters": ()}
    return {**saved, **stated, "model_name_or_path": base}
