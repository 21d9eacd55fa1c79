"""Explicit bidirectional masks, for architectures that nothing else tells their attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ullme.models.specs import layer_kinds

Window = Literal["window", "full"]


def attention_masks(decoder: PreTrainedModel, mask_NT: Tensor, window: Window = "window") -> Tensor | dict[str, Tensor]:
    """The bidirectional 4D mask (N, 1, T, T) that this decoder takes, one per kind of layer where it mixes kinds.

    Boolean for SDPA, additive for eager attention. A query sees every real token, or those within its window to both
    sides, or those in its chunk; chunks are counted from the first real token.
    """
    config = decoder.config.get_text_config(decoder=True)
    implementation = config._attn_implementation
    if implementation not in ("eager", "sdpa"):
        raise ValueError(
            f"attn_implementation: {implementation!r} takes no explicit mask, which {config.model_type!r} needs to "
            "become bidirectional; use 'sdpa' or 'eager'"
        )
    dtype: torch.dtype = decoder.get_input_embeddings().weight.dtype  # type: ignore[assignment]
    kinds = layer_kinds(config)
    if not kinds and windowed(config):
        kinds = ("sliding_attention",)
    masks = {}
    for kind in kinds or ("full_attention",):
        seen_N1TT = _seen(mask_NT, kind if window == "window" else "full_attention", config)
        masks[kind] = seen_N1TT if implementation == "sdpa" else _additive(seen_N1TT, dtype)
    return masks if len(masks) > 1 else next(iter(masks.values()))


def windowed(config: Any) -> bool:
    """Whether some layer of this architecture sees a window or a chunk of the text only."""
    config = config.get_text_config(decoder=True)
    kinds = layer_kinds(config)
    return bool(set(kinds) & set(_REACH)) if kinds else getattr(config, "sliding_window", None) is not None


def _seen(mask_NT: Tensor, kind: str, config: Any) -> Tensor:
    """Which token sees which, bool (N, 1, T, T)."""
    seen_NTT = mask_NT.bool()[:, None, :].expand(-1, mask_NT.shape[1], -1)
    if kind in _REACH:
        place_NT = (mask_NT.cumsum(1) - 1).clamp(min=0)
        seen_NTT = seen_NTT & _REACH[kind](place_NT[:, :, None], place_NT[:, None, :], config)
    elif kind not in _FULL:
        raise ValueError(f"layer kind {kind!r} has no bidirectional mask; use an architecture of attention layers only")
    return seen_NTT[:, None]


#: Kinds of layer that take a mask over the full text; an index picks among the keys that the mask leaves.
_FULL = ("full_attention", "indexed_attention")

#: Kinds of layer that see part of the text: whether places a and b of a text see each other.
_REACH: Mapping[str, Callable[[Tensor, Tensor, Any], Tensor]] = {
    "sliding_attention": lambda a, b, config: (a - b).abs() <= config.sliding_window,
    "chunked_attention": lambda a, b, config: a // config.attention_chunk_size == b // config.attention_chunk_size,
}


def _additive(seen_N1TT: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen_N1TT.shape, dtype=dtype, device=seen_N1TT.device).masked_fill(
        ~seen_N1TT, torch.finfo(dtype).min
    )
