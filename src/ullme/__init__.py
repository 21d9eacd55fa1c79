"""ullme: turn any decoder-only LLM into a text embedder."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "ULLME": "ullme.models",
    "WrappedULLME": "ullme.models",
    "GradCacheTrainer": "ullme.trainer",
    "EmbeddingTrainer": "ullme.trainer",
    "eval_mteb_dataset": "ullme.eval",
}

if TYPE_CHECKING:
    from ullme.eval import eval_mteb_dataset
    from ullme.models import ULLME, WrappedULLME
    from ullme.trainer import EmbeddingTrainer, GradCacheTrainer

__all__ = ["ULLME", "EmbeddingTrainer", "GradCacheTrainer", "WrappedULLME", "__version__", "eval_mteb_dataset"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import ullme`` loads no torch."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'ullme' has no attribute {name!r}")
