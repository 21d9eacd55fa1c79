"""The attention switch: bidirectional or causal, chosen by each call and carried by it.

Nothing that a later call overwrites holds the mode: it is an argument, a mask tensor, or an attribute that is set for
the length of the forward and read only while masks are built, before the layers whose activations may be recomputed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ullme.models.specs import Mechanism, layer_kinds
from ullme.types import Attention

Window = Literal["window", "full"]


@dataclass(frozen=True)
class AttentionSwitch:
    """How one architecture is told its attention.

    Attributes:
        mechanism: how a bidirectional call tells the decoder; a causal call is the plain Transformers call.
        window: sliding and chunked layers under bidirectional attention keep their window, to both sides, or see
            the full text.
        head_reproduced: whether ``specs.logits_head`` turns causal hidden states into the model's own logits; where
            it does not, likelihoods must come from the whole causal LM.
    """

    mechanism: Mechanism
    window: Window = "window"
    head_reproduced: bool = True

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
    with _attribute(decoder.config, "is_causal", False):
        return decoder(**call)[0]


def _by_buffer(decoder: PreTrainedModel, call: dict[str, Any], window: Window) -> Tensor:
    """Call with every causal triangle opened to both sides; a recomputed layer opens its own again."""
    triangles = _triangles(decoder, window)
    with ExitStack() as stack:
        for layer in decoder.modules():
            recompute = vars(layer).get("_gradient_checkpointing_func")
            if recompute is not None:
                opened = partial(_recompute_opened, recompute, triangles)
                stack.enter_context(_attribute(layer, "_gradient_checkpointing_func", opened))
        stack.enter_context(_opened(triangles))
        stack.enter_context(_attribute(decoder.config, "is_causal", False))
        return decoder(**call)[0]


Triangles = list[tuple[nn.Module, str, Tensor]]


def _triangles(decoder: PreTrainedModel, window: Window) -> Triangles:
    """The modules that keep a causal triangle, the buffer's name, and what takes its place."""
    found: Triangles = []
    for path, value in decoder.named_buffers():
        if _is_triangle(value):
            both_sides = (
                torch.ones_like(value) if window == "full" else (value.bool() | value.bool().mT).to(value.dtype)
            )
            module, _, name = path.rpartition(".")
            found.append((decoder.get_submodule(module), name, both_sides))
    return found


def _is_triangle(value: Tensor) -> bool:
    """Whether the corner of a square buffer has its diagonal and what is next below it, and nothing above."""
    if value.dim() < 2 or value.shape[-1] != value.shape[-2] or value.shape[-1] < 2:
        return False
    corner = value[..., :8, :8].bool()
    below = corner.diagonal(-1, -2, -1).all() & corner.diagonal(0, -2, -1).all()
    return bool(below) and not bool(corner.triu(1).any())


@contextmanager
def _opened(triangles: Triangles) -> Iterator[None]:
    with ExitStack() as stack:
        for module, name, both_sides in triangles:
            stack.enter_context(_attribute(module, name, both_sides))
        yield


def _recompute_opened(recompute: Callable, triangles: Triangles, layer: Callable, *args: Any) -> Any:
    def opened_layer(*args: Any) -> Any:
        with _opened(triangles):
            return layer(*args)

    return recompute(opened_layer, *args)


_BIDIRECTIONAL: Mapping[str, Any] = {
    "argument": _by_argument,
    "mask": _by_mask,
    "config": _by_config,
    "buffer": _by_buffer,
}


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """The attribute has this value inside, and its old one (or none) afterwards."""
    existed, old = hasattr(owner, name), getattr(owner, name, None)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if existed:
            setattr(owner, name, old)
        else:
            delattr(owner, name)


def attention_switch(causal_lm: PreTrainedModel, window: Window = "window") -> AttentionSwitch:
    """The switch of this model, probed.

    Raises:
        ValueError: the model cannot be made bidirectional; the message names the kind of layer, or what failed, and
            the cure.
    """
    from ullme.models.choosing import probed_switch  # choosing runs switches, so it imports this module

    return probed_switch(causal_lm, window)
