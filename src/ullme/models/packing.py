"""Texts end to end in one forward, without padding: every linear layer sees all tokens, attention each text alone."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ullme.models.fused_lora import packed_lora
from ullme.models.masks import Window
from ullme.models.packed_attention import IMPLEMENTATIONS
from ullme.models.packed_row import PackedRow
from ullme.models.recompute import attribute, held_in_recomputation
from ullme.models.text_groups import TextGroups
from ullme.models.turns import Turns
from ullme.types import Attention

#: Implementations in whose place ours is put. Flash attention takes packed texts itself, by the same arguments.
_REPLACED = ("sdpa", "eager")
_OWN = ("flash_attention_2", "flash_attention_3")


def packed_call(
    decoder: PreTrainedModel, row: PackedRow, attention: Attention, window: Window, turns: Turns, **notes: Any
) -> Tensor:
    """Last hidden states (X, D) of a row's tokens, no segment of it empty.

    The decoder's own code runs: positions restart with each text, and where texts end goes to its attention with the
    arguments that Transformers has for it. The attention itself is named by the config for the length of the call;
    calls of other threads that need another one wait for it.

    Raises:
        ValueError: the decoder takes no positions, or its attention implementation cannot be packed.
    """
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        raise ValueError(f"packing: {type(decoder).__name__} takes no positions; run it padded (packing: false)")
    starts = torch.tensor([0, *accumulate(row.lengths)], dtype=torch.int32, device=row.ids_X.device)
    longest = max(row.lengths)
    call: dict[str, Any] = {
        "input_ids": row.ids_X[None],
        "position_ids": row.place_X[None],
        "attention_mask": None,
        "use_cache": False,
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
        **notes,
    }
    if _packs_itself(decoder, window):
        with packed_lora():
            return decoder(**call, **({} if attention == "causal" else {"is_causal": False}))[0][0]
    call["attention_mask"] = torch.ones_like(call["input_ids"])  # some decoders warn without one
    call["text_groups"] = TextGroups(row.lengths, row.prefixes)
    with packing_held(decoder, attention, window, turns), packed_lora():
        return decoder(**call)[0][0]


def packing_held(
    decoder: PreTrainedModel, attention: Attention, window: Window, turns: Turns
) -> AbstractContextManager:
    """Inside, the decoder has our attention: around a call, or around several that threads make side by side.

    Raises:
        ValueError: its own attention implementation cannot be packed.
    """
    if _packs_itself(decoder, window):
        return nullcontext()
    config, own = decoder.config, decoder.config._attn_implementation
    if own not in _REPLACED and own not in IMPLEMENTATIONS.values():  # another thread may hold one of these
        raise ValueError(f"attn_implementation: {own!r} cannot be packed; use 'sdpa', or run it padded")
    name = IMPLEMENTATIONS[attention, attention == "bidirectional" and window == "full"]

    def named() -> AbstractContextManager:
        return attribute(config, "_attn_implementation", name)

    return turns.held(name, lambda: held_in_recomputation(decoder, named, lambda: turns.held(name, named)))


def _packs_itself(decoder: PreTrainedModel, window: Window) -> bool:
    return decoder.config._attn_implementation in _OWN and window == "window"
