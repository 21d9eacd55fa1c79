"""Models: loading, attention switch, pooling, LoRA, and the ULLME that joins them."""

from __future__ import annotations

from ullme.models.settings import ModelSettings
from ullme.models.ullme import ULLME
from ullme.models.wrapped import WrappedULLME

__all__ = ["ULLME", "ModelSettings", "WrappedULLME"]
