"""Whether a model computes the same of texts end to end as of each alone: looked at when it is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import torch
from transformers import PreTrainedModel

from ullme.models.attention import AttentionSwitch, text_decoder
from ullme.models.masks import windowed
from ullme.models.modes import eval_mode
from ullme.models.packed_row import PackedRow
from ullme.models.packing import packed_call
from ullme.models.pooling import mean
from ullme.models.probe import CALL_ERRORS, call_failure, distinct_ids, relative_error, suitable_tolerance
from ullme.types import Attention, Texts

LENGTHS = (9, 14, 1, 7)
CONTEXT = 3

#: Of the tolerance between two computations of a state: in half precision, errors of an untrained bidirectional model
#: reach 0.1, and those of a wrong mask are near 0.5.
FACTOR = 2

#: Kinds of layer whose reach comes with the call; others that see part of a text are told by masks alone.
_REACH_IN_CALL = ("full_attention", "sliding_attention")


def packing_failure(causal_lm: PreTrainedModel, switch: AttentionSwitch, tolerance: float | None = None) -> str | None:
    """Why this model must be run padded, in words; None where packing changes nothing."""
    decoder = text_decoder(causal_lm)
    for kind in layer_types(decoder):
        if kind not in _REACH_IN_CALL:
            return f"its kind of layer, {kind!r}, is told its reach by a mask"
    tolerance = FACTOR * suitable_tolerance(causal_lm) if tolerance is None else tolerance
    with torch.no_grad(), eval_mode(causal_lm):
        try:
            for attention in get_args(Attention):
                failure = _differs(causal_lm, switch, attention, tolerance) or _window_lost(decoder, switch, attention)
                if failure is not None:
                    return failure
        except CALL_ERRORS as error:
            return call_failure(error)
    return None


def layer_types(decoder: PreTrainedModel) -> list[str]:
    """The kind of each layer, where the config lists them or gives all layers a window; else an empty list."""
    config = decoder.config.get_text_config(decoder=True)
    listed = getattr(config, "layer_types", None)
    if listed is None and windowed(config):
        return ["sliding_attention"] * config.num_hidden_layers
    return list(listed or [])


def probe_texts(causal_lm: PreTrainedModel) -> Texts:
    """A few short texts of different lengths, one of them a single token, and two with the same context."""
    ids = [distinct_ids(causal_lm, length, shift=i)[0].tolist() for i, length in enumerate(LENGTHS)]
    ids[-1] = [*ids[0][:CONTEXT], *ids[-1][CONTEXT:]]
    return Texts.from_lists(ids, skip=[CONTEXT, 0, 0, CONTEXT]).to(causal_lm.device)


def _differs(causal_lm: PreTrainedModel, switch: AttentionSwitch, attention: Attention, tolerance: float) -> str | None:
    texts, padded = probe_texts(causal_lm), replace(switch, packs=False)
    packed_XD = switch.packed(causal_lm, texts, attention)
    alone_XD = torch.cat([padded.states(causal_lm, texts.rows([i]), attention) for i in range(len(texts))])
    texts = replace(texts, skip_N=torch.zeros_like(texts.skip_N))  # all of each is compared
    packed_ND, alone_ND = (
        mean(states_XD.to(torch.promote_types(states_XD.dtype, torch.float32)), texts)
        for states_XD in (packed_XD, alone_XD)
    )
    # Per token a sparse model may route one rounded state elsewhere; the embedding is what must not change.
    error = max(relative_error(packed_ND, alone_ND), 0.3 * relative_error(packed_XD, alone_XD))
    if not error <= tolerance:
        return f"{attention} states of a text change among others ({error:.1e})"
    return None


def _window_lost(decoder: PreTrainedModel, switch: AttentionSwitch, attention: Attention) -> str | None:
    """A text as short as the probe's is within every window, so the windows that attention was given are counted."""
    windows: list[int | None] = []
    one = Texts.from_lists([[0]]).to(decoder.device)
    if decoder.config._attn_implementation in ("sdpa", "eager"):
        packed_call(decoder, PackedRow.of(one), attention, switch.window, switch.turns, seen_windows=windows)
        expected = [kind == "sliding_attention" for kind in layer_types(decoder)]
        if expected and [window is not None for window in windows] != expected:
            return "its attention is not told its window"
    return None
