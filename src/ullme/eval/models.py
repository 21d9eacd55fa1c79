"""Loading what is to be evaluated: a checkpoint, a causal LM, a sentence-transformers or an mteb-registered model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
from huggingface_hub.errors import HfHubHTTPError
from mteb.models.model_implementations import MODEL_REGISTRY
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import cached_file

from ullme.models import ULLME, WrappedULLME
from ullme.models.checkpoint import SETTINGS_FILE
from ullme.models.packaged import PACKAGED_MODELS

#: Endings of architecture names of encoders, some of which Transformers can also load as causal LMs.
_ENCODER_HEADS = ("ForMaskedLM", "ForPreTraining")


def load_model(name: str | Path, kind: str | None = None, **settings: Any) -> Any:
    """A model for :func:`ullme.eval.evaluate`, of whatever kind it is.

    Args:
        name: a folder saved by ullme, a sentence-transformers or encoder folder or hub name, a name that mteb knows,
            or a causal LM (folder, hub name, GGUF file, packaged model).
        kind: ``checkpoint``, ``sentence-transformers``, ``mteb`` or ``causal-lm``; None finds out.
        settings: of :class:`ullme.models.ULLME`, for a checkpoint and a causal LM.

    Raises:
        ValueError: no such model, an unknown kind, or settings that the kind does not take.
    """
    name = str(name)
    kind = kind or kind_of(name)
    if kind not in _LOADERS:
        raise ValueError(f"kind: {kind!r} is unknown; use {', '.join(_LOADERS)}")
    if settings and kind in ("sentence-transformers", "mteb"):
        raise ValueError(
            f"{', '.join(settings)}: {name!r} is a {kind} model, which brings its own; leave them out, or give "
            "kind='causal-lm' to load its backbone"
        )
    return _LOADERS[kind](name, settings)


def kind_of(name: str) -> str:
    """The kind of a model by its files: ours first, then sentence-transformers', then what mteb knows by name."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / SETTINGS_FILE).is_file():
            return "checkpoint"
        return _by_files(str(folder))
    if name.lower() in PACKAGED_MODELS or folder.exists():
        return "causal-lm"
    return "mteb" if name in MODEL_REGISTRY else _by_files(name)


def _by_files(name: str) -> str:
    """Sentence-transformers also loads a plain encoder, such as BERT, and takes the mean of its tokens."""
    if _file(name, "modules.json") is not None:
        return "sentence-transformers"
    try:
        config = json.loads(Path(_file(name, "config.json") or "").read_text())
        heads = [head for head in config.get("architectures") or () if head.endswith(_ENCODER_HEADS)]
    except (OSError, ValueError, AttributeError):
        return "causal-lm"  # whose loader says what is wrong with the folder or the name
    generates = config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "causal-lm" if generates and not heads else "sentence-transformers"


def _file(name: str, file: str) -> str | None:
    try:
        return cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError, HfHubHTTPError):
        return None


def _checkpoint(name: str, settings: dict[str, Any]) -> Any:
    return ULLME.from_pretrained(name, **settings).eval()


def _causal_lm(name: str, settings: dict[str, Any]) -> Any:
    return WrappedULLME(model_name_or_path=name, **settings)


def _sentence_transformers(name: str, settings: dict[str, Any]) -> Any:
    try:
        return SentenceTransformer(name)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"model {name!r}: sentence-transformers cannot load it ({_first_line(error)}); get a complete copy"
        ) from error


def _mteb(name: str, settings: dict[str, Any]) -> Any:
    try:
        return mteb.get_model(name)
    except (ImportError, OSError, KeyError) as error:
        raise ValueError(f"model {name!r}: mteb knows it but cannot load it here ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason').splitlines()[0]}"


_LOADERS: dict[str, Callable[[str, dict[str, Any]], Any]] = {
    "checkpoint": _checkpoint,
    "sentence-transformers": _sentence_transformers,
    "mteb": _mteb,
    "causal-lm": _causal_lm,
}
