"""The probe: what a model does under each attention, looked at when it is loaded.

Every failure it looks for is silent: a causal model that is called bidirectional still gives embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ullme.models.attention import AttentionSwitch, Window, text_decoder
from ullme.models.specs import MECHANISMS, SPECS, Mechanism, head_transform, layer_kinds, refusal
from ullme.types import Attention

LENGTH = 12  # tokens of the text that is looked at: short, so that loading a large model stays cheap
PADDING = 5

#: Relative error allowed between two computations of the same state. A loaded model has real depth and outlier
#: channels; the tolerance has to tell rounding from a wrong mask (errors near 1), not more.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}

ALTERNATIVES = "an all-attention decoder (llama, mistral, qwen3, gemma3, ...)"


@dataclass(frozen=True)
class ProbeResult:
    """What one model did under one switch.

    Attributes:
        mechanism: the switch's.
        failures: what went wrong, in words; empty when every invariant holds.
        errors: relative error of each comparison, by name.
        head_reproduced: whether output embedding and ``head_transform`` turn hidden states into the model's logits.
    """

    mechanism: Mechanism
    failures: tuple[str, ...] = ()
    errors: dict[str, float] = field(default_factory=dict)
    head_reproduced: bool = True

    @property
    def passed(self) -> bool:
        """Whether every invariant holds."""
        return not self.failures


def probed_switch(causal_lm: PreTrainedModel, window: Window = "window") -> AttentionSwitch:
    """The first switch under which every invariant holds: the architecture's row, or each mechanism in turn.

    Raises:
        ValueError: the architecture is refused by its kind of layer, or no mechanism passes the probe.
    """
    config = causal_lm.config
    refused = refusal(config)
    if refused is not None:
        kind, reason = refused
        raise ValueError(
            f"model type {config.model_type!r} cannot be made bidirectional: its {kind!r} layer {reason}; "
            f"use {ALTERNATIVES}"
        )
    row = SPECS.get(config.model_type)
    results = []
    for mechanism in MECHANISMS if row is None else (row,):
        switch = AttentionSwitch(mechanism, window)
        result = _probe_or_error(causal_lm, switch)
        if result.passed:
            return switch
        results.append(result)
    raise ValueError(_refusal_message(causal_lm, results[0]))


def _probe_or_error(causal_lm: PreTrainedModel, switch: AttentionSwitch) -> ProbeResult:
    try:
        return probe(causal_lm, switch)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError, AssertionError) as error:
        # A class that does not take this mechanism raises whatever its code trips over; the mechanism has failed.
        lines = str(error).splitlines() or [""]
        return ProbeResult(switch.mechanism, failures=(f"the call fails ({type(error).__name__}: {lines[0][:120]})",))


def _refusal_message(causal_lm: PreTrainedModel, result: ProbeResult) -> str:
    config = causal_lm.config
    kinds = ", ".join(layer_kinds(config)) or "attention"
    implementation = config._attn_implementation
    other = "sdpa" if implementation == "eager" else "eager"
    return (
        f"model type {config.model_type!r} with attn_implementation={implementation!r} (layers: {kinds}) cannot be "
        f"made bidirectional: {'; '.join(result.failures)}; try attn_implementation={other!r}, or use {ALTERNATIVES}"
    )


def probe(causal_lm: PreTrainedModel, switch: AttentionSwitch, tolerance: float | None = None) -> ProbeResult:
    """Run every invariant of the switch but the gradient's on a short text; about ten forwards, no gradient.

    Args:
        causal_lm: the model; left as it was, its training mode included.
        switch: the switch to try.
        tolerance: relative error that passes; by default what suits the model's dtype.
    """
    if tolerance is None:
        tolerance = TOLERANCE.get(causal_lm.dtype, TOLERANCE[torch.bfloat16])
    with torch.no_grad(), _evaluating(causal_lm):
        look = _Look(causal_lm, switch, tolerance)
        look.causal_equals_transformers()
        look.future_is_seen()
        look.every_layer_sees_the_future()
        look.padding_does_not_matter()
        look.causal_is_restored()
    return ProbeResult(switch.mechanism, tuple(look.failures), look.errors, look.head_reproduced)


class _Look:
    """One probe: the texts it looks at, and what it found so far."""

    def __init__(self, causal_lm: PreTrainedModel, switch: AttentionSwitch, tolerance: float) -> None:
        self.causal_lm, self.switch, self.tolerance = causal_lm, switch, tolerance
        self.failures: list[str] = []
        self.errors: dict[str, float] = {}
        self.head_reproduced = False
        self.ids_1T = _distinct_ids(causal_lm, LENGTH)
        self.late_1T, self.early_1T = (_changed(self.ids_1T, at) for at in (-1, -2))
        self.full_1T = torch.ones_like(self.ids_1T)
        #: An effect on the future below this share of the effect on the past is rounding.
        self.floor = max(1e-3, 5 * torch.finfo(causal_lm.dtype).eps)
        self.plain = self._plain()

    def hidden(self, ids_NT: Tensor, mask_NT: Tensor, attention: Attention = "bidirectional") -> Tensor:
        return self.switch.hidden(self.causal_lm, ids_NT, mask_NT, attention).float()

    def expect(self, name: str, error: float, failure: str) -> None:
        """Note a comparison; NaN fails."""
        self.errors[name] = max(error, self.errors.get(name, 0.0))
        if not error <= self.tolerance:
            self.failures.append(f"{failure} (relative error {error:.1g})")

    def causal_equals_transformers(self) -> None:
        hidden_1TD = self.switch.hidden(self.causal_lm, self.ids_1T, self.full_1T, "causal")
        head = self.causal_lm.get_output_embeddings()
        if head is not None:
            logits_1TV = head_transform(self.causal_lm.config)(head(hidden_1TD))
            same_shape = logits_1TV.shape == self.plain.logits.shape
            self.head_reproduced = same_shape and _error(logits_1TV, self.plain.logits) <= self.tolerance
        states = self.plain.hidden_states
        error = 0.0 if self.head_reproduced else _error(hidden_1TD, states[-1]) if states else float("nan")
        self.expect("causal", error, "causal attention differs from Transformers' own output")

    def future_is_seen(self) -> None:
        for name, padding in (("unpadded", 0), ("padded", PADDING)):
            past, future = self._effects("bidirectional", padding)
            leak = self._effects("causal", padding)[1]
            if not future > self.floor * past or not future > 10 * leak:
                self.failures.append(f"an early token does not see a late one in a text {name}")
            if leak > self.floor * past:
                self.failures.append(f"an early token sees a late one under causal attention in a text {name}")

    def _effects(self, attention: Attention, padding: int) -> tuple[float, float]:
        """What a changed token does to the last token, and to those before it that are within reach."""
        ids = [
            torch.cat([self.ids_1T[:, :1].expand(1, padding), x], 1) for x in (self.ids_1T, self.early_1T, self.late_1T)
        ]
        mask_1T = torch.cat([torch.zeros_like(self.full_1T[:, :1]).expand(1, padding), self.full_1T], 1)
        plain, early, late = (self.hidden(x, mask_1T, attention)[0] for x in ids)
        before_late = (plain - late).norm(dim=-1)[:-1] / plain.norm(dim=-1)[:-1]
        after_early = (plain - early).norm(dim=-1)[-1] / plain.norm(dim=-1)[-1]
        return float(after_early), float(before_late[padding:].max())

    def every_layer_sees_the_future(self) -> None:
        """A layer that mixes tokens must mix them both ways: in a hybrid the others would hide one that does not."""
        blind = _blind_layers(self)
        if blind:
            self.failures.append(f"layer {blind[0]} mixes tokens but does not see the future")

    def padding_does_not_matter(self) -> None:
        alone_TD = self.hidden(self.ids_1T, self.full_1T)[0]
        length = LENGTH + PADDING
        other_1T = _distinct_ids(self.causal_lm, length, shift=3)
        pad_1P, zero_1P = self.ids_1T[:, :1].expand(1, PADDING), self.full_1T[:, :1].expand(1, PADDING) * 0
        sides = {
            "right": (torch.cat([self.ids_1T, pad_1P], 1), torch.cat([self.full_1T, zero_1P], 1), slice(0, LENGTH)),
            "left": (
                torch.cat([pad_1P, self.ids_1T], 1),
                torch.cat([zero_1P, self.full_1T], 1),
                slice(PADDING, length),
            ),
        }
        for side, (ids_1T, mask_1T, text) in sides.items():
            mask_NT = torch.cat([torch.ones_like(mask_1T), mask_1T])
            padded_TD = self.hidden(torch.cat([other_1T, ids_1T]), mask_NT)[1, text]
            error = max(_error(padded_TD.mean(0), alone_TD.mean(0)), 0.3 * _error(padded_TD, alone_TD))
            self.expect(side, error, f"{side} padding changes the embedding of a text")

    def causal_is_restored(self) -> None:
        again = self._plain()
        error = 0.0 if torch.equal(again.logits, self.plain.logits) else _error(again.logits, self.plain.logits)
        if error > (0.0 if again.logits.device.type == "cpu" else self.tolerance):
            self.failures.append("causal output changed after a bidirectional call")

    def _plain(self) -> Any:
        return self.causal_lm(
            input_ids=self.ids_1T, attention_mask=self.full_1T, use_cache=False, output_hidden_states=True
        )


def _blind_layers(look: _Look) -> list[str]:
    """Names of the layers whose output at a token follows a change before it, but not one behind it."""
    decoder = text_decoder(look.causal_lm)
    blind: list[str] = []

    def compare(name: str, layer: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        hidden_1TD = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden_1TD, Tensor) or hidden_1TD.dim() != 3 or hidden_1TD.shape[1] != LENGTH:
            return

        def effect(changed: slice, seen: slice) -> float:
            other_1TD = hidden_1TD.clone()
            other_1TD[:, changed] = other_1TD[:, changed].flip(-1) * 1.5
            again = (
                layer.forward(other_1TD, *args[1:], **kwargs)
                if args
                else layer.forward(**kwargs | {"hidden_states": other_1TD})
            )
            before, after = (_tensor(x)[:, seen].float() for x in (output, again))
            return float(((after - before).norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-30)).max())

        first, second = slice(0, LENGTH // 2), slice(LENGTH // 2, LENGTH)
        past, future = effect(first, second), effect(second, first)
        mixes = past > min(20 * torch.finfo(look.causal_lm.dtype).eps, 1e-2)
        if mixes and not future > look.floor * past:
            blind.append(f"{name} ({type(layer).__name__})")

    stacks = [m for m in decoder.modules() if isinstance(m, nn.ModuleList)]
    stack: nn.ModuleList = max(stacks, key=len, default=nn.ModuleList())
    hooks = []
    for i, layer in enumerate(stack):

        def hook(layer: nn.Module, args: tuple, kwargs: dict, output: Any, name: str = str(i)) -> None:
            compare(name, layer, args, kwargs, output)

        hooks.append(layer.register_forward_hook(hook, with_kwargs=True))
    try:
        look.hidden(look.ids_1T, look.full_1T)
    finally:
        for handle in hooks:
            handle.remove()
    return blind


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def _distinct_ids(causal_lm: PreTrainedModel, length: int, shift: int = 0) -> Tensor:
    """Token ids (1, length) spread over the vocabulary, away from its ends, where special tokens are."""
    size: int = causal_lm.get_input_embeddings().weight.shape[0]  # type: ignore[index, assignment]
    low, high = size // 8, size - size // 8
    ids_T = low + (torch.arange(length) * 37 + 11 * shift) % max(high - low, 1)
    return ids_T[None].to(causal_lm.device)


def _changed(ids_1T: Tensor, at: int) -> Tensor:
    changed_1T = ids_1T.clone()
    changed_1T[0, at] = ids_1T[0, 0]
    return changed_1T


def _error(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of ``b``."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; each module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
