"""A model as an encoding job uses it: texts made ready apart from the forward pass, embeddings as stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ullme.encode.job import EncodeOptions
from ullme.models.encoding import TOKENS_PER_TEXT, embed
from ullme.types import Texts

#: A model on a device; picklable where several processes load one each.
Load = Callable[[str | None], Any]


class Embedder(Protocol):
    """Texts to embeddings in two steps, the first of which may run while the second is busy with earlier texts."""

    def prepare(self, texts: Sequence[str]) -> Any:
        """Make texts ready; touches no model."""

    def embed(self, prepared: Any) -> np.ndarray:
        """Embeddings (N, D), float32, in the order of the texts."""


def embedder_of(model: Any, options: EncodeOptions, batch_size: int) -> Embedder:
    """The embedder of a ULLME, or of anything with ``encode`` (a ``SentenceTransformer``)."""
    if hasattr(model, "embed_texts") and hasattr(model, "text_tokenizer"):
        return _Tokenized(model, options, batch_size * TOKENS_PER_TEXT)
    return _Whole(model, options, batch_size)


class _Tokenized:
    """A ULLME: tokenised in one step, embedded in the other."""

    def __init__(self, model: Any, options: EncodeOptions, max_tokens: int) -> None:
        self._model, self._options, self._max_tokens = model, options, max_tokens

    def prepare(self, texts: Sequence[str]) -> Texts:
        return self._model.text_tokenizer.texts(texts, self._options.prompt or "")

    def embed(self, prepared: Texts) -> np.ndarray:
        return _as_asked(embed(self._model, prepared, self._max_tokens).cpu().numpy(), self._options)


class _Whole:
    """A model that takes strings."""

    def __init__(self, model: Any, options: EncodeOptions, batch_size: int) -> None:
        self._model, self._options, self._batch_size = model, options, batch_size

    def prepare(self, texts: Sequence[str]) -> list[str]:
        return list(texts)

    def embed(self, prepared: list[str]) -> np.ndarray:
        how = {"batch_size": self._batch_size, "show_progress_bar": False, "prompt": self._options.prompt or ""}
        return _as_asked(np.asarray(self._model.encode(prepared, **how), dtype=np.float32), self._options)


def _as_asked(rep_ND: np.ndarray, options: EncodeOptions) -> np.ndarray:
    """Truncated and normalised."""
    kept_ND = np.ascontiguousarray(rep_ND[:, : options.truncate_dim])
    if options.normalize:
        kept_ND /= np.maximum(np.linalg.norm(kept_ND, axis=1, keepdims=True), 1e-12)
    return kept_ND


def resolved_prompt(model: Any, prompt: str | None, name: str) -> str:
    """The given prompt, else the model's own of this name, else none."""
    own = getattr(model, "prompts", None) or {}
    return prompt if prompt is not None else own.get(name) or ""


def dimension_of(model: Any, truncate_dim: int | None) -> int:
    """Dimensions of an embedding, after truncation.

    Raises:
        ValueError: more are to be kept than there are.
    """
    width = getattr(model, "embedding_dimension", None)
    if width is None:
        width = np.asarray(model.encode(["a"], show_progress_bar=False)).shape[1]
    if truncate_dim is not None and truncate_dim > width:
        raise ValueError(
            f"truncate_dim: {truncate_dim} is more than the model's {width} dimensions; give at most {width}"
        )
    return int(truncate_dim or width)
