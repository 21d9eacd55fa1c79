"""``ullme check``: whether attention can be switched, for one model or for every architecture of Transformers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ullme.apps.check_gradient import gradient_failure
from ullme.apps.check_report import Finding, markdown, model_table, summary_table
from ullme.apps.check_tiny import tiny_config, tiny_model
from ullme.models.attention import AttentionSwitch
from ullme.models.choosing import probed_switch, refuse_by_kind
from ullme.models.layer_probe import smallest_effect
from ullme.models.loading import load_causal_lm, load_config, resolve
from ullme.models.masks import windowed
from ullme.models.packing_probe import packing_failure
from ullme.models.probe import TOLERANCE, distinct_ids, probe_or_failure, relative_error
from ullme.models.settings import ModelSettings
from ullme.models.specs import REFUSED_TYPES, layer_kinds, refusal

IMPLEMENTATIONS = ("eager", "sdpa")
PAGE = Path("docs/architectures.md")
TINY_TOLERANCE = 1e-5  # fp32, two layers


def check_model(
    name_or_path: str,
    *,
    attn_implementation: str | None = None,
    dtype: str = "float32",
    revision: str | None = None,
    trust_remote_code: bool = False,
    gradient: bool = True,
) -> Table:
    """Probe one model under each attention implementation that its class supports here, as a printable table.

    Args:
        name_or_path: hub name, model folder, GGUF file or packaged model.
        attn_implementation: try only this one.
        dtype: dtype of the loaded weights.
        revision: revision of a hub model.
        trust_remote_code: run model code from the hub.
        gradient: also compare gradients with and without activation checkpointing (two backward passes more).

    Raises:
        ValueError: the model cannot be loaded, or passes under no attention implementation.
    """
    settings = ModelSettings(name_or_path, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code)
    source = resolve(settings)
    config = load_config(settings, source)
    refuse_by_kind(config)
    causal_lm = load_causal_lm(settings, source, config)
    tolerance = TOLERANCE.get(causal_lm.dtype, TOLERANCE[torch.bfloat16])
    found = {}
    for implementation in (attn_implementation,) if attn_implementation else IMPLEMENTATIONS:
        finding = Finding(config.model_type, type(causal_lm).__name__)
        try:
            causal_lm.set_attn_implementation(implementation)
        except (ValueError, ImportError) as error:
            found[implementation] = replace(finding, status="not supported", reason=_line(error))
            continue
        found[implementation] = _examine(causal_lm, finding, tolerance, gradient)
    if not any(finding.status == "passes" for finding in found.values()):
        reasons = "; ".join(f"{name}: {finding.reason}" for name, finding in found.items())
        raise ValueError(f"model {name_or_path!r} cannot be made bidirectional: {reasons}")
    return model_table(name_or_path, found)


def check_all(output_path: Path | str | None = None, model_types: tuple[str, ...] | None = None) -> Table:
    """Build a tiny random model of every causal-LM architecture of Transformers, and run every invariant on it.

    Args:
        output_path: the Markdown page to write (default ``docs/architectures.md``); the same text on every run with the
            same library versions.
        model_types: only these (default: the whole mapping).

    Returns:
        The counts, printable.
    """
    names = model_types or tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    console = Console(stderr=True)
    with _quiet():
        findings = [
            examine_architecture(name)
            for name in track(names, "Architectures", console=console, disable=not console.is_terminal)
        ]
    path = PAGE if output_path is None else Path(output_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(markdown(findings), encoding="utf-8")
    return summary_table(findings)


def examine_architecture(model_type: str) -> Finding:
    """What a tiny random model of this type does under each attention implementation; never raises."""
    finding = Finding(model_type, str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, "")))
    model = None
    try:
        refused = _refused(model_type)
        if refused is not None:
            return replace(finding, status="refused", reason=f"{refused[0]}: {refused[1]}")
        found, states = {}, {}
        for implementation in IMPLEMENTATIONS:
            model = _built(model_type, implementation)
            if model is None:
                found[implementation] = replace(finding, status="not supported")
                continue
            found[implementation] = _examine(model, finding, TINY_TOLERANCE, gradient=True, strict=True)
            states[implementation] = _embedding_states(model, found[implementation])
    except Exception as error:  # one architecture's failure is a row of the table, whatever its code raised
        return replace(finding, status="not built" if model is None else "fails", reason=_line(error))
    return _joined(finding, found, states)


def _refused(model_type: str) -> tuple[str, str] | None:
    """The refusal of the architecture as it is released, without building it."""
    if model_type in REFUSED_TYPES:
        return REFUSED_TYPES[model_type]
    return refusal(CONFIG_MAPPING[model_type]()) or refusal(tiny_config(model_type))


def _built(model_type: str, implementation: str) -> PreTrainedModel | None:
    """The tiny model, or None where the class has no such attention implementation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return tiny_model(model_type, implementation)
        except ValueError as error:
            if "does not support an attention implementation" in str(error):
                return None
            raise


def _examine(
    causal_lm: PreTrainedModel, finding: Finding, tolerance: float, gradient: bool, strict: bool = False
) -> Finding:
    """Every invariant of one model, under both treatments of windows.

    ``strict`` also asks that each single token sees the last one once windows are open; a trained model may ignore
    it, and so may an index.
    """
    try:
        switch = probed_switch(causal_lm, tolerance=tolerance)
    except ValueError as error:
        return replace(finding, status="fails", reason=_line(error))
    opened = replace(switch, window="full")
    packed = switch.packs and packing_failure(causal_lm, opened, tolerance) is None
    finding = replace(finding, mechanism=switch.mechanism, head=switch.head_reproduced, packed=packed, status="passes")
    if windowed(causal_lm.config):
        result = probe_or_failure(causal_lm, opened, tolerance)
        if not result.passed:
            reason = f"with windows opened: {'; '.join(result.failures.values())}"
            return replace(finding, status="fails", reason=reason)
    if (
        strict
        and "indexed_attention" not in layer_kinds(causal_lm.config)
        and not _every_token_sees_the_last(causal_lm, opened)
    ):
        return replace(finding, status="fails", reason="with windows opened, some token does not see the last one")
    if gradient:
        failure, recomputes = gradient_failure(causal_lm, switch, tolerance)
        finding = replace(finding, recomputes=recomputes)
        if failure:
            return replace(finding, status="fails", reason=failure)
    return finding


def _every_token_sees_the_last(causal_lm: PreTrainedModel, switch: AttentionSwitch) -> bool:
    ids_1T = distinct_ids(causal_lm, 12)
    other_1T = ids_1T.clone()
    other_1T[0, -1] = ids_1T[0, 0]
    with torch.no_grad():
        before_TD, after_TD = (
            switch.hidden(causal_lm, x, torch.ones_like(x), "bidirectional")[0, :-1] for x in (ids_1T, other_1T)
        )
    change_T = (after_TD - before_TD).norm(dim=-1) / before_TD.norm(dim=-1)
    return bool((change_T > smallest_effect(causal_lm.dtype)).all())


def _embedding_states(causal_lm: PreTrainedModel, finding: Finding) -> torch.Tensor | None:
    """Bidirectional states of a text, to be compared between attention implementations; None where there are none."""
    if finding.status != "passes" or finding.mechanism is None:
        return None
    ids_1T = distinct_ids(causal_lm, 12)
    with torch.no_grad():
        return AttentionSwitch(finding.mechanism).hidden(causal_lm, ids_1T, torch.ones_like(ids_1T), "bidirectional")


def _joined(finding: Finding, found: dict[str, Finding], states: dict[str, torch.Tensor | None]) -> Finding:
    """One row from the findings of each attention implementation."""
    tried = [f for f in found.values() if f.status != "not supported"]
    failed = {name: f for name, f in found.items() if f.status == "fails"}
    passed = [f for f in tried if f.status == "passes"]
    reason = "; ".join(f"{name}: {f.reason}" for name, f in failed.items())
    computed = [s for s in states.values() if s is not None]
    if not failed and len(computed) == 2 and relative_error(computed[0], computed[1]) > TINY_TOLERANCE:
        return replace(finding, status="fails", reason="eager and sdpa give different bidirectional states")
    mechanisms = dict.fromkeys(str(f.mechanism) for f in passed)
    return replace(
        finding,
        status="fails" if failed or not passed else "passes",
        mechanism=passed[0].mechanism if passed else None,
        mechanisms=tuple(mechanisms),
        implementations={name: f.status for name, f in found.items()},
        head=bool(passed) and all(f.head for f in passed),
        recomputes=bool(passed) and all(f.recomputes for f in passed),
        packed=bool(passed) and all(f.packed for f in passed),
        reason=reason,
    )


def _line(error: BaseException) -> str:
    """The message on one line, after the error's class unless it is the ValueError that user errors are."""
    message = " ".join(str(error).split())
    message = message if len(message) <= 300 else f"{message[:297]}..."
    return message if isinstance(error, ValueError) else f"{type(error).__name__}: {message}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers' notes about tiny configurations stay out of the progress bar; its old verbosity afterwards."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers.logging.set_verbosity(verbosity)
