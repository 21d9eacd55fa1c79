"""The choice of a model's switch: refused by kind of layer, or the first mechanism that passes the probe."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ullme.models.attention import AttentionSwitch
from ullme.models.masks import Window
from ullme.models.modes import in_float32
from ullme.models.packing_probe import packing_failure
from ullme.models.probe import ProbeResult, probe_or_failure
from ullme.models.specs import MECHANISMS, SPECS, layer_kinds, refusal

CURE = "use an all-attention decoder (llama, mistral, qwen3, gemma3, ...; docs/architectures.md lists all)"


def refuse_by_kind(config: Any) -> None:
    """Raise where the config alone shows that the model cannot be switched; no weights are needed.

    Raises:
        ValueError: the architecture is refused by its kind of layer, or the config fixes bidirectional attention.
    """
    refused = refusal(config)
    if refused is not None:
        kind, reason = refused
        raise ValueError(f"model type {config.model_type!r}: its kind of layer, {kind!r}, {reason}; {CURE}")
    if getattr(config, "is_causal", True) is False:
        raise ValueError(
            f"model type {config.model_type!r}: its config says 'is_causal': false, so that it cannot be causal; "
            "remove the key from config.json, or load the model that this one was exported from"
        )


def probed_switch(
    causal_lm: PreTrainedModel, window: Window = "window", tolerance: float | None = None, packing: bool = True
) -> AttentionSwitch:
    """The first switch under which every invariant holds: the architecture's row, or else each mechanism in turn.

    It packs, unless not wanted, where packing is found to change nothing; it never is a reason to refuse. Where
    rounding to half precision may have failed them all, float32 decides, for which there must be memory.

    Raises:
        ValueError: the architecture is refused by its kind of layer, or no mechanism passes the probe.
    """
    config = causal_lm.config
    refuse_by_kind(config)
    switch, results = _first_passing(causal_lm, window, tolerance, packing)
    if switch is None and tolerance is None and _may_be_rounding(causal_lm, results):
        with in_float32(causal_lm):
            switch, _ = _first_passing(causal_lm, window, tolerance, packing)
    if switch is None:
        raise ValueError(_message(config, results))
    return switch


def _first_passing(
    causal_lm: PreTrainedModel, window: Window, tolerance: float | None, packing: bool
) -> tuple[AttentionSwitch | None, list[ProbeResult]]:
    """A switch that passes, or none, and what was found of those before it."""
    results: list[ProbeResult] = []
    model_type = causal_lm.config.model_type
    row = (SPECS[model_type],) if model_type in SPECS else ()
    for mechanism in dict.fromkeys((*row, *MECHANISMS)):
        result = probe_or_failure(causal_lm, AttentionSwitch(mechanism, window), tolerance)
        if result.passed:
            switch = AttentionSwitch(mechanism, window, result.head_reproduced)
            packs = packing and packing_failure(causal_lm, switch, tolerance) is None
            return replace(switch, packs=packs), results
        results.append(result)
    return None, results


def _may_be_rounding(causal_lm: PreTrainedModel, results: list[ProbeResult]) -> bool:
    """Whether some mechanism failed in nothing but sizes of errors, and the weights can be had in float32."""
    half = causal_lm.dtype in (torch.float16, torch.bfloat16) and not getattr(causal_lm, "is_quantized", False)
    return half and any(result.failures.keys() <= {"causal", "padding"} for result in results)


def _message(config: Any, results: list[ProbeResult]) -> str:
    # The first mechanism that at least ran tells more about the model than one that its code does not take.
    telling = next((result for result in results if "call" not in result.failures), results[0])
    other = "eager" if config._attn_implementation == "sdpa" else "sdpa"
    return (
        f"model type {config.model_type!r} (layers: {', '.join(layer_kinds(config)) or 'attention'}; "
        f"attn_implementation {config._attn_implementation!r}) cannot be made bidirectional: "
        f"{'; '.join(telling.failures.values())}; try attn_implementation={other!r}, or {CURE}"
    )
