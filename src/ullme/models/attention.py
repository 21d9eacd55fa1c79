"""The attention switch: bidirectional or causal, chosen by each call and carried by it.

Nothing that a later call overwrites holds the mode: it is an argument, a mask tensor, or an attribute that is set for
the length of the forward, and again for a layer that is recomputed in backward.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ullme.models.masks import Window, attention_masks, windowed
from ullme.models.packed_row import PackedRow
from ullme.models.packing import packed_call, packing_held
from ullme.models.recompute import attribute, held_in_recomputation
from ullme.models.specs import Mechanism
from ullme.models.triangles import opened_triangles, replaced
from ullme.models.turns import Turns
from ullme.types import Attention, Texts


@dataclass(frozen=True)
class AttentionSwitch:
    """How one architecture is told its attention.

    Attributes:
        mechanism: how a bidirectional call tells the decoder; a causal call is the plain Transformers call.
        window: sliding and chunked layers under bidirectional attention keep their window, to both sides, or see
            the full text.
        head_reproduced: whether ``specs.logits_head`` turns causal hidden states into the model's own logits; where
            it does not, likelihoods must come from the whole causal LM.
        packs: whether texts are computed end to end, without padding.
        turns: in which packed calls of several threads have this model, whose config names its attention.
    """

    mechanism: Mechanism
    window: Window = "window"
    head_reproduced: bool = True
    packs: bool = False
    turns: Turns = field(default_factory=Turns, compare=False, repr=False)

    def states(self, causal_lm: PreTrainedModel, texts: Texts, attention: Attention) -> Tensor:
        """Last hidden states (X, D) of texts end to end, of which none is empty; packed if this model packs."""
        if self.packs:
            return self.packed(causal_lm, texts, attention)
        ids_NT, mask_NT = texts.pad(0)  # masked, so any token will do
        return self.hidden(causal_lm, ids_NT, mask_NT, attention)[mask_NT.bool()]

    def packed(self, causal_lm: PreTrainedModel, texts: Texts, attention: Attention) -> Tensor:
        """Last hidden states (X, D) of texts end to end, in one forward without padding.

        Under causal attention a context that several texts have is computed once, but on a GPU, whose kernels do not
        know of it.

        Raises:
            ValueError: the architecture's attention does not come through Transformers' registry.
        """
        share = attention == "causal" and causal_lm.device.type == "cpu"
        row = PackedRow.sharing(texts) if share else PackedRow.of(texts)
        states_XD = packed_call(text_decoder(causal_lm), row, attention, self.window, self.turns)
        return states_XD if row.source_X is None else states_XD.index_select(0, row.source_X)

    def held(self, causal_lm: PreTrainedModel, attention: Attention) -> AbstractContextManager:
        """Inside, packed calls under this attention can be made by several threads side by side."""
        return packing_held(text_decoder(causal_lm), attention, self.window, self.turns)

    def hidden(self, causal_lm: PreTrainedModel, ids_NT: Tensor, mask_NT: Tensor, attention: Attention) -> Tensor:
        """Last hidden states (N, T, D) of the backbone, after its final norm, under this attention.

        A text's states do not depend on the side or the amount of its padding. The model is left as it was.

        Args:
            causal_lm: the Transformers model; its LM head is not called.
            ids_NT: token ids.
            mask_NT: 1 on real tokens, padding on either side; a row without any is computed as one token of padding.
            attention: ``bidirectional`` or ``causal``.
        """
        decoder = text_decoder(causal_lm)
        mask_NT = _with_a_token(mask_NT)
        call = {"input_ids": ids_NT, "attention_mask": mask_NT, "use_cache": False}
        if "position_ids" in inspect.signature(decoder.forward).parameters:
            call["position_ids"] = (mask_NT.cumsum(1) - 1).clamp(min=0)
        if attention == "causal":
            return decoder(**call)[0]
        mechanism = "mask" if self.window == "full" and windowed(decoder.config) else self.mechanism
        return _BIDIRECTIONAL[mechanism](decoder, call, self.window)


def text_decoder(causal_lm: PreTrainedModel) -> PreTrainedModel:
    """The text model under the LM head: what turns token ids into last hidden states."""
    # ``get_decoder`` finds the text part of a multimodal model, but takes a linear layer named ``decoder`` for one;
    # ``base_model`` is the model itself where the prefix names no attribute (llama4, mllama).
    decoder: Any
    for decoder in (causal_lm.get_decoder(), causal_lm.base_model, getattr(causal_lm, "model", None)):
        if hasattr(decoder, "config") and decoder is not causal_lm:
            return decoder
    raise ValueError(
        f"model class {type(causal_lm).__name__} has no decoder under its LM head; use another architecture"
    )


def _with_a_token(mask_NT: Tensor) -> Tensor:
    """The mask with its first token set in rows that have none: attention over nothing is NaN, also in backward."""
    empty_N1 = ~mask_NT.bool().any(1, keepdim=True)
    first_NT = torch.zeros_like(mask_NT)
    first_NT[:, :1] = 1
    return torch.where(empty_N1, first_NT, mask_NT)


def _accepted(decoder: PreTrainedModel, **arguments: Any) -> dict[str, Any]:
    """Those of these arguments that the decoder's forward takes."""
    parameters = inspect.signature(decoder.forward).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in arguments.items() if open_ended or name in parameters}


def _by_argument(decoder: PreTrainedModel, call: dict[str, Any], window: Window) -> Tensor:
    return decoder(**call, **_accepted(decoder, is_causal=False))[0]


def _by_mask(decoder: PreTrainedModel, call: dict[str, Any], window: Window) -> Tensor:
    masks = attention_masks(decoder, call["attention_mask"], window)
    return decoder(**call | {"attention_mask": masks}, **_accepted(decoder, is_causal=False))[0]


def _by_config(decoder: PreTrainedModel, call: dict[str, Any], window: Window) -> Tensor:
    with attribute(decoder.config, "is_causal", False):
        return decoder(**call)[0]


def _by_buffer(decoder: PreTrainedModel, call: dict[str, Any], window: Window) -> Tensor:
    """Call with every causal triangle opened to both sides; a recomputed layer opens its own again."""
    triangles = opened_triangles(decoder, full=window == "full")
    with held_in_recomputation(decoder, lambda: replaced(triangles)), attribute(decoder.config, "is_causal", False):
        return decoder(**call)[0]


_BIDIRECTIONAL: Mapping[str, Any] = {
    "argument": _by_argument,
    "mask": _by_mask,
    "config": _by_config,
    "buffer": _by_buffer,
}


def attention_switch(causal_lm: PreTrainedModel, window: Window = "window", packing: bool = True) -> AttentionSwitch:
    """The switch of this model, probed.

    Raises:
        ValueError: the model cannot be made bidirectional; the message names the kind of layer, or what failed, and
            the cure.
    """
    from ullme.models.choosing import probed_switch  # choosing runs switches, so it imports this module

    return probed_switch(causal_lm, window, packing=packing)
