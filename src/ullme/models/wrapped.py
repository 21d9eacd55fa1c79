"""WrappedULLME: a model for inference and evaluation, from a base and an optional checkpoint (paper, Listing 3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ullme.models.checkpoint import SETTINGS_FILE, read_settings
from ullme.models.io import finish_loading, where_it_lies
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
        if model_checkpoint is None:
            super().__init__(model_name_or_path, model_backbone_type, **settings)
            self.eval()
            return
        folder, base = Path(model_checkpoint), str(model_name_or_path)
        whole = _with_checkpoint(folder, base, {"model_backbone_type": model_backbone_type, **settings})
        adapter = read_settings(folder)["base_signature"] is not None
        super().__init__(**where_it_lies(whole, folder, adapter).to_dict())
        finish_loading(self, folder, whole if adapter else self.settings)


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


def _with_checkpoint(folder: Path, base: str, stated: dict[str, Any]) -> ModelSettings:
    origin = str(folder / SETTINGS_FILE)
    saved = ModelSettings.from_dict(read_settings(folder)["settings"], origin)
    settings = ModelSettings.from_dict({**saved.to_dict(), **stated, "model_name_or_path": base}, origin)
    for name in _DECISIVE:
        if getattr(settings, name) != getattr(saved, name):
            raise ValueError(
                f"{name}: {stated[name]!r} contradicts the checkpoint {str(folder)!r}, made with "
                f"{getattr(saved, name)!r}; leave it out or use another checkpoint"
            )
    return settings
