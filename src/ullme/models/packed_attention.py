"""What Transformers' attention registry calls when texts are packed: each text attends within itself.

On a GPU in half precision it is torch's varlen attention; elsewhere ``ullme.models.text_attention``. Shapes as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ullme.models.reach import Reach
from ullme.models.text_attention import attend_each_text
from ullme.models.text_groups import TextGroups
from ullme.types import Attention

#: What some architectures pass to their attention that changes its result and is not computed here.
_UNSUPPORTED = ("s_aux", "position_bias")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    attention: Attention,
    full: bool = False,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    text_groups: TextGroups | None = None,
    seen_windows: list[int | None] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as Transformers' layers call it, of one row that holds all texts.

    Args:
        module: the calling layer.
        query: (1, H, X, C).
        key: (1, K, X, C).
        value: (1, K, X, its own C).
        attention_mask: None; what a text sees follows from the rest.
        attention: ``bidirectional`` or ``causal``.
        full: ignore the layer's window.
        dropout: probability with which an attention weight is dropped.
        scaling: factor of the products; by default one over the root of a head's width.
        sliding_window: the layer's window.
        softcap: bound of the scaled products, by tanh.
        cu_seq_lens_q: where each text starts, and the end of the last, (N + 1,).
        max_length_q: tokens of the longest text.
        text_groups: the texts; None where each ends before the next starts, and has no prefix.
        seen_windows: takes a note of the layer's window.
        **others: what else a layer passes.

    Returns:
        (1, X, H, C of values), and None for the weights.

    Raises:
        ValueError: the layer asks for something else.
    """
    odd = [name for name in _UNSUPPORTED if others.get(name) is not None]
    if odd or cu_seq_lens_q is None or attention_mask is not None:
        reason = f"takes {odd[0]}" if odd else "is not told where texts end, or is given a mask"
        raise ValueError(f"packed attention: {type(module).__name__} {reason}; run it padded (packing: false)")
    if seen_windows is not None:
        seen_windows.append(sliding_window)
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    reach = Reach.of(attention, None if full else sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if _has_kernel(query, value) and not dropout and softcap is None:
        output = _varlen(query, key, value, cu_seq_lens_q, max_length_q, scale, reach)
        return output[None], None
    groups = TextGroups(cu_seq_lens_q.diff().tolist()) if text_groups is None else text_groups
    with torch.autocast(query.device.type, enabled=False):
        if dropout:
            return _dropped(query, key, value, groups, scale, reach, dropout, softcap)[None], None
        return attend_each_text(query[0], key[0], value[0], groups, scale, reach, softcap)[None], None


#: Names in Transformers' registry: the attention, and whether windows are opened.
IMPLEMENTATIONS: Mapping[tuple[Attention, bool], str] = {
    ("causal", False): "ullme_packed_causal",
    ("bidirectional", False): "ullme_packed_bidirectional",
    ("bidirectional", True): "ullme_packed_bidirectional_full",
}
for (_attention, _full), _name in IMPLEMENTATIONS.items():
    AttentionInterface.register(_name, partial(packed_attention, attention=_attention, full=_full))


def _has_kernel(query: Tensor, value: Tensor) -> bool:
    """Whether torch's varlen attention takes these: a GPU, half precision, heads of one width."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    return query.is_cuda and half and query.shape[-1] == value.shape[-1] <= 256


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int | None, scale: float, reach: Reach
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # from torch 2.10 on, and only on a GPU

    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    before, after = (-1 if side is None else side for side in (reach.before, reach.after))
    longest = int(starts.diff().max()) if longest is None else longest
    output = varlen_attn(
        query,
        key,
        value,
        starts,
        starts,
        longest,
        longest,
        scale=scale,
        window_size=(before, after),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)  # nothing beside it was asked for
    return output


def _dropped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: TextGroups,
    scale: float,
    reach: Reach,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    """Each text by itself, with random numbers that a repeated forward draws again; (X, H, C)."""
    attend = partial(_capped, softcap=softcap) if softcap else nn.functional.scaled_dot_product_attention
    parts = []
    for segment in groups.segments:
        key_M, place_M = torch.from_numpy(segment.keys_M).to(query.device), np.arange(segment.end)
        seen_RM = ~reach.hidden(place_M - place_M[segment.before :, None])
        found = attend(
            query.narrow(2, segment.start, segment.length),
            key.index_select(2, key_M),
            value.index_select(2, key_M),
            attn_mask=torch.from_numpy(seen_RM).to(query.device),
            dropout_p=dropout,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        parts.append(found[0].transpose(0, 1))
    return torch.cat(parts)


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor,
    dropout_p: float,
    scale: float,
    enable_gqa: bool,
    softcap: float,
) -> Tensor:
    """``scaled_dot_product_attention`` of scores that are softly capped (Gemma 2), which it does not know."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    score_RM = torch.tanh(query @ key.mT * (scale / softcap)) * softcap
    weight_RM = score_RM.masked_fill(~attn_mask, -torch.inf).softmax(
        -1, dtype=torch.promote_types(query.dtype, torch.float32)
    )
    return nn.functional.dropout(weight_RM.to(query.dtype), dropout_p) @ value
