"""Sentences to embeddings, with the names and defaults that sentence-transformers users know."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ullme.batching import consecutive_chunks, length_sorted_batches
from ullme.models.modes import eval_mode
from ullme.models.settings import ATTENTIONS, require_choice, require_sight
from ullme.models.streams import side_by_side, streams_on
from ullme.types import Attention, Texts

if TYPE_CHECKING:
    from ullme.models.ullme import ULLME

logger = logging.getLogger(__name__)

#: ``batch_size`` counts texts of this many tokens: a batch holds more texts when they are shorter, fewer when longer.
TOKENS_PER_TEXT = 128

#: Tokens, padding included, of one forward inside a training chunk.
FORWARD_TOKENS = 16_384

#: Tokens of one forward of ``encode`` at most, by device type: on two CPU cores activations of more leave the caches
#: (4,096 tokens of SmolLM2-135M take 5% longer in bfloat16).
ENCODE_TOKENS: Mapping[str, int] = {"cpu": 2048}

#: Tokens that are worth a batch of their own where streams share few texts.
SHARED_TOKENS = 256

#: Padding of one padded forward, in tokens, by device type: about what one more forward costs, however short its texts.
#: 70 on two CPU cores (SmolLM2-135M with LoRA); a GPU's figure has not been measured. Another device takes the GPU's.
FORWARD_PADDING: Mapping[str, int] = {"cpu": 64, "cuda": 1024}


def forward_batches(
    texts: Texts, max_tokens: int = FORWARD_TOKENS, device_type: str = "cpu", packed: bool = True
) -> list[list[int]]:
    """Positions of the texts that exist, longest first, cut at a token budget; padded ones with little padding."""
    lengths = texts.lengths_N.tolist()
    present = sorted((i for i, length in enumerate(lengths) if length > 0), key=lambda i: -lengths[i])
    costs = [lengths[i] for i in present]
    if packed:
        batches = consecutive_chunks(costs, max_tokens)
    else:
        padding = FORWARD_PADDING.get(device_type, FORWARD_PADDING["cuda"])
        batches = length_sorted_batches(costs, max_tokens, max_padding=padding)
    return [[present[i] for i in batch] for batch in batches]


@torch.no_grad()
def encode(
    model: ULLME,
    sentences: str | Sequence[str],
    prompt_name: str | None = None,
    prompt: str | None = None,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
    convert_to_numpy: bool = True,
    convert_to_tensor: bool = False,
    device: str | torch.device | None = None,
    normalize_embeddings: bool = False,
    truncate_dim: int | None = None,
    attention: Attention | None = None,
) -> np.ndarray | Tensor | list[Tensor]:
    """Embeddings of sentences, in their order; they do not depend on ``batch_size`` or on each other.

    Args:
        model: the embedder; its mode (train or eval) is restored.
        sentences: one string, or several.
        prompt_name: name of one of ``model.prompts``, put before every sentence and left out of the pool.
        prompt: the prompt itself; wins over ``prompt_name``.
        batch_size: memory of one batch, in texts of 128 tokens; on a CPU no more than 16 are taken.
        show_progress_bar: None shows it when the logger is at INFO or below.
        convert_to_numpy: return a numpy array, unless ``convert_to_tensor``.
        convert_to_tensor: return one tensor.
        device: move the model there first.
        normalize_embeddings: to length 1, after truncation.
        truncate_dim: keep the first dimensions only.
        attention: ``bidirectional`` or ``causal`` for this call; None is the model's own.

    Returns:
        (D,) for one string, else (len(sentences), D), float32; a list of tensors when neither conversion is asked for.

    Raises:
        ValueError: no such prompt name or attention, an attention under which the pooling sees nothing, a
            ``truncate_dim`` below 1, or sentences that are not strings.
    """
    single = isinstance(sentences, str)
    texts = [sentences] if isinstance(sentences, str) else list(sentences)
    _require_sense(texts, attention, model.pooling, truncate_dim)
    if device is not None:
        model.to(device)
    tokenized = model.text_tokenizer.texts(texts, _prompt_text(model.prompts, prompt_name, prompt))
    if show_progress_bar is None:
        show_progress_bar = logger.getEffectiveLevel() <= logging.INFO
    rep_ND = embed(model, tokenized, batch_size * TOKENS_PER_TEXT, attention, show_progress_bar)
    rep_ND = rep_ND[:, :truncate_dim]
    if normalize_embeddings:
        rep_ND = torch.nn.functional.normalize(rep_ND, dim=-1)
    value = rep_ND[0] if single else rep_ND
    if convert_to_tensor:
        return value
    if convert_to_numpy:
        return value.cpu().numpy()
    return value if single else list(value)


def _require_sense(texts: Sequence[Any], attention: str | None, pooling: str, truncate_dim: int | None) -> None:
    if attention is not None:
        require_choice("attention", attention, ATTENTIONS)
        require_sight(pooling, attention)
    if truncate_dim is not None and truncate_dim < 1:
        raise ValueError(f"truncate_dim: {truncate_dim} leaves no dimension; give a whole number from 1")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"sentences[{i}]: {type(text).__name__} is not a string; give a string or a list of strings"
            )


def with_default_prompt(prompts: Mapping[str, str], name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of ``encode`` with this prompt, if the model has it and no other is asked for."""
    if name in prompts and options.get("prompt") is None and options.get("prompt_name") is None:
        return {**options, "prompt_name": name}
    return dict(options)


def _prompt_text(prompts: Mapping[str, str], prompt_name: str | None, prompt: str | None) -> str:
    if prompt is not None:
        return prompt
    if prompt_name is None:
        return ""
    if prompt_name not in prompts:
        raise ValueError(f"prompt_name: {prompt_name!r} is unknown; the model has {sorted(prompts) or 'no prompts'}")
    return prompts[prompt_name]


@torch.no_grad()
def embed(
    model: ULLME, texts: Texts, max_tokens: int, attention: Attention | None = None, progress: bool = False
) -> Tensor:
    """Embeddings (N, D) of tokenised texts, float32, in their order, from batches of so many tokens at most."""
    device, packs, mode = model.device.type, model.switch.packs, attention or model.attention
    streams = streams_on(device) if packs else 1
    batches = forward_batches(texts, _batch_tokens(texts, max_tokens, device, streams), device, packs)
    rep_ND = torch.empty(len(texts), model.embedding_dimension, dtype=torch.float32, device=model.device)
    held = model.switch.held(model.causal_lm, mode) if packs else nullcontext()
    with eval_mode(model), held, tqdm(total=len(texts), desc="Encoding", unit="text", disable=not progress) as bar:
        found = side_by_side(lambda rows: model.embed_texts(texts.rows(rows), mode), batches, streams)
        for rows, part_ND in zip(batches, found, strict=True):
            rep_ND[rows] = part_ND.to(rep_ND.dtype)
            bar.update(len(rows))
    return rep_ND


def _batch_tokens(texts: Texts, max_tokens: int, device_type: str, streams: int) -> int:
    """Tokens of a batch: of few texts, so few that every stream has some of them."""
    limit = min(max_tokens, ENCODE_TOKENS.get(device_type, max_tokens))
    if streams == 1:
        return limit
    return min(limit, max(SHARED_TOKENS, int(texts.lengths_N.sum()) // (2 * streams)))
