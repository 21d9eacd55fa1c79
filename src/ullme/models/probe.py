"""The probe: what a model does under each attention, looked at when it is loaded.

Every failure it looks for is silent: a causal model that is called bidirectional still gives embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ullme.models.attention import AttentionSwitch, text_decoder
from ullme.models.layer_probe import look_at_layers, smallest_effect
from ullme.models.modes import eval_mode
from ullme.models.specs import Mechanism, logits_head
from ullme.types import Attention

LENGTH = 12  # tokens of the text that is looked at: short, so that loading a large model stays cheap
PADDING = 5

#: Relative error allowed between two computations of the same state. A loaded model has real depth and outlier
#: channels; the tolerance has to tell rounding from a wrong mask (errors near 1), not more.
TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType(
    {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
)


#: Model code that was written for another way of calling it raises whatever it trips over.
CALL_ERRORS = (
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    LookupError,
    AssertionError,
    NotImplementedError,
)


@dataclass(frozen=True)
class ProbeResult:
    """What one model did under one switch.

    Attributes:
        mechanism: the switch's.
        failures: invariant that does not hold -> what happened, in words; empty when every invariant holds.
        errors: relative error of each comparison, by name.
        head_reproduced: whether ``specs.logits_head`` turns last hidden states into the model's logits.
    """

    mechanism: Mechanism
    failures: Mapping[str, str]
    errors: Mapping[str, float]
    head_reproduced: bool = False

    @property
    def passed(self) -> bool:
        """Whether every invariant holds."""
        return not self.failures


def probe_or_failure(
    causal_lm: PreTrainedModel, switch: AttentionSwitch, tolerance: float | None = None
) -> ProbeResult:
    """The probe's result; a call that the class does not take is the failure of the invariant ``call``."""
    try:
        return probe(causal_lm, switch, tolerance)
    except CALL_ERRORS as error:
        return ProbeResult(switch.mechanism, {"call": call_failure(error)}, {})


def call_failure(error: Exception) -> str:
    """What a call that raised this is, in words."""
    line = (str(error).splitlines() or [""])[0][:160]
    return f"the call fails ({type(error).__name__}: {line})"


def probe(causal_lm: PreTrainedModel, switch: AttentionSwitch, tolerance: float | None = None) -> ProbeResult:
    """Every invariant of the switch but the gradient's, on a short text: about ten forwards, no gradient.

    Args:
        causal_lm: the model; left as it was, its training mode included.
        switch: the switch to try.
        tolerance: relative error that passes; by default what suits the model's dtype.
    """
    with torch.no_grad(), eval_mode(causal_lm):
        look = _Look(causal_lm, switch, suitable_tolerance(causal_lm) if tolerance is None else tolerance)
        look.causal_equals_transformers()
        look.future_is_seen()
        look.every_layer_sees_the_future()
        look.padding_does_not_matter()
        look.causal_is_restored()
    return ProbeResult(switch.mechanism, look.failures, look.errors, look.head_reproduced)


class _Look:
    """One probe: the text it looks at, and what it found so far."""

    def __init__(self, causal_lm: PreTrainedModel, switch: AttentionSwitch, tolerance: float) -> None:
        self.causal_lm, self.switch, self.tolerance = causal_lm, switch, tolerance
        self.failures: dict[str, str] = {}
        self.errors: dict[str, float] = {}
        self.head_reproduced = False
        self.ids_1T = distinct_ids(causal_lm, LENGTH)
        self.full_1T = torch.ones_like(self.ids_1T)
        self.dtype = _computed_in(causal_lm)
        self.floor = smallest_effect(self.dtype)
        self.plain = self._plain()

    def hidden(self, ids_NT: Tensor, mask_NT: Tensor, attention: Attention = "bidirectional") -> Tensor:
        """Hidden states (N, T, D), at least float32."""
        hidden_NTD = self.switch.hidden(self.causal_lm, ids_NT, mask_NT, attention)
        return hidden_NTD if hidden_NTD.dtype == torch.float64 else hidden_NTD.float()

    def expect(self, invariant: str, name: str, error: float, failure: str) -> None:
        """Note a comparison; NaN fails."""
        self.errors[name] = error
        if not error <= self.tolerance:
            self.failures.setdefault(invariant, failure)

    def causal_equals_transformers(self) -> None:
        """Through the head where it is known, otherwise by the states that Transformers itself calls last."""
        hidden_1TD = self.switch.hidden(self.causal_lm, self.ids_1T, self.full_1T, "causal")
        head = logits_head(self.causal_lm)
        logits_1TV = head(hidden_1TD) if head is not None else hidden_1TD
        if logits_1TV.shape == self.plain.logits.shape:
            error = relative_error(logits_1TV, self.plain.logits)
            self.head_reproduced = error <= self.tolerance
        if not self.head_reproduced:
            states = self._plain(output_hidden_states=True).hidden_states
            error = relative_error(hidden_1TD, states[-1]) if states else float("nan")
        self.expect("causal", "causal", error, "causal attention differs from Transformers' own output")

    def future_is_seen(self) -> None:
        """An early token sees a late one, and does not under causal attention."""
        for name, padding in (("without padding", 0), ("with padding", PADDING)):
            past, future = self._effects("bidirectional", padding)
            leak = self._effects("causal", padding)[1]
            self.errors[f"future {name}"] = future / max(past, 1e-30)
            if not future > self.floor * past or not future > 10 * leak:
                self.failures.setdefault("future", f"an early token does not see a late one in a text {name}")
            if leak > self.floor * past:
                self.failures.setdefault("causal", "an early token sees a late one under causal attention")

    def _effects(self, attention: Attention, padding: int) -> tuple[float, float]:
        """What changing the last token but one does to the last, and changing the last to those before it."""
        ids_3T = self.ids_1T.repeat(3, 1)
        ids_3T[1, -2] = ids_3T[2, -1] = self.ids_1T[0, 0]
        ids_NT, mask_NT = self._padded(ids_3T, padding, "left")
        plain_TD, early_TD, late_TD = self.hidden(ids_NT, mask_NT, attention)[:, padding:]
        size_T = plain_TD.norm(dim=-1).clamp(min=1e-30)
        past_T, future_T = ((plain_TD - other_TD).norm(dim=-1) / size_T for other_TD in (early_TD, late_TD))
        return float(past_T[-1]), float(future_T[:-1].max())

    def every_layer_sees_the_future(self) -> None:
        """In a hybrid, the layers that see the future would hide one that does not."""
        decoder = text_decoder(self.causal_lm)
        run = partial(self.hidden, self.ids_1T, self.full_1T)
        seeing, blind = look_at_layers(decoder, run, LENGTH, self.dtype)
        if blind:
            self.failures["layers"] = f"{blind[0]} mixes tokens but does not see the future"
        elif not seeing:
            self.failures["layers"] = "no layer was found that sees the future"

    def padding_does_not_matter(self) -> None:
        """A text alone, and in a batch with a longer one, padded on either side."""
        alone_TD = self.hidden(self.ids_1T, self.full_1T)[0]
        longer_1T = distinct_ids(self.causal_lm, LENGTH + PADDING, shift=3)
        texts = [(longer_1T, torch.ones_like(longer_1T))]
        texts += [self._padded(self.ids_1T, PADDING, side) for side in ("right", "left")]
        ids_NT, mask_NT = (torch.cat(parts) for parts in zip(*texts, strict=True))
        _, right_TD, left_TD = self.hidden(ids_NT, mask_NT)
        for side, padded_TD in (("right", right_TD[:LENGTH]), ("left", left_TD[PADDING:])):
            # Per token a sparse model may route one rounded state elsewhere; the embedding is what must not change.
            error = max(relative_error(padded_TD.mean(0), alone_TD.mean(0)), 0.3 * relative_error(padded_TD, alone_TD))
            self.expect("padding", side, error, f"{side} padding changes the embedding of a text")

    def _padded(self, ids_NT: Tensor, padding: int, side: str) -> tuple[Tensor, Tensor]:
        """These texts with so many tokens of padding on one side, and their mask."""
        pad = (padding, 0) if side == "left" else (0, padding)
        fill = int(self.ids_1T[0, 0])
        return nn.functional.pad(ids_NT, pad, value=fill), nn.functional.pad(torch.ones_like(ids_NT), pad)

    def causal_is_restored(self) -> None:
        """Bit for bit on a CPU; a GPU may add in another order."""
        again, before = self._plain().logits, self.plain.logits
        same = torch.equal(again, before) or (
            again.device.type != "cpu" and relative_error(again, before) <= self.tolerance
        )
        if not same:
            self.failures["restored"] = "the causal output changed after a bidirectional call"

    def _plain(self, **options: bool) -> Any:
        return self.causal_lm(input_ids=self.ids_1T, attention_mask=self.full_1T, use_cache=False, **options)


def suitable_tolerance(causal_lm: PreTrainedModel) -> float:
    """The relative error between two computations of the same state that this model's rounding explains."""
    quantized = getattr(causal_lm, "is_quantized", False)
    return TOLERANCE.get(torch.bfloat16 if quantized else _computed_in(causal_lm), TOLERANCE[torch.bfloat16])


def _computed_in(causal_lm: PreTrainedModel) -> torch.dtype:
    """The dtype that rounds: the model's, or autocast's where it is on."""
    device = causal_lm.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else causal_lm.dtype


def distinct_ids(causal_lm: PreTrainedModel, length: int, shift: int = 0) -> Tensor:
    """Token ids (1, length) spread over the vocabulary, away from its ends, where special tokens are."""
    size: int = causal_lm.get_input_embeddings().weight.shape[0]  # type: ignore[index, assignment]
    low, high = size // 8, size - size // 8
    ids_T = low + (torch.arange(length) * 37 + 11 * shift) % max(high - low, 1)
    return ids_T[None].to(causal_lm.device)


def relative_error(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of ``b``."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))
