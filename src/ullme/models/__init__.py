"""Models: loading, attention switch, pooling, LoRA, and the ULLME that joins them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ullme.models.settings import ModelSettings

if TYPE_CHECKING:
    from ullme.models.ullme import ULLME
    from ullme.models.wrapped import WrappedULLME

_LAZY = {"ULLME": "ullme.models.ullme", "WrappedULLME": "ullme.models.wrapped"}

__all__ = ["ULLME", "ModelSettings", "WrappedULLME"]


def __getattr__(name: str) -> Any:
    """Import a model class when it is first used: settings are checked without waiting for Transformers and peft."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ullme.models' has no attribute {name!r}")
