"""What no export can say: refused before anything is written, with the reason and the cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ullme.models import ULLME
from ullme.models.masks import windowed

#: What sentence-transformers calls our poolings (in its configuration of all versions, which servers read too).
POOLING_KEYS = {
    "mean": "pooling_mode_mean_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "cls": "pooling_mode_cls_token",
    "lasttoken": "pooling_mode_lasttoken",
}

_OURS = "serve it through ullme"


def _opened_window(model: ULLME) -> bool:
    """Whether a text can be longer than a sliding window that this model ignores and the exported one would not."""
    if model.settings.window != "full" or model.attention != "bidirectional" or not windowed(model.config):
        return False
    window = getattr(model.config.get_text_config(decoder=True), "sliding_window", None)
    return window is None or model.max_length > window + 1


#: A property of the model, and what is said of it.
_REFUSALS: tuple[tuple[Callable[[ULLME], bool], str], ...] = (
    (
        lambda m: m.pooling not in POOLING_KEYS,
        f"pooling: {{m.pooling!r}} does not exist in sentence-transformers; train with one of {', '.join(POOLING_KEYS)}"
        f", or {_OURS}",
    ),
    (
        lambda m: m.settings.echo,
        f"echo: True, and sentence-transformers cannot read a text twice; train without it, or {_OURS}",
    ),
    (
        lambda m: m.settings.chat_template,
        "chat_template: True, and mean pooling there cannot leave out a template; train with an instruction that ends "
        f"in a line break instead, or {_OURS}",
    ),
    (
        lambda m: m.settings.quantization is not None,
        "quantization: {m.settings.quantization!r} cannot be merged; load the model with quantization=None",
    ),
    (
        _opened_window,
        "window: 'full', and an exported config cannot open this model's sliding windows; train with window 'window', "
        f"or give a max_length within the window, or {_OURS}",
    ),
)


def refusal(model: ULLME) -> str | None:
    """Why a model cannot be exported and what to do, or None."""
    return next((reason.format(m=model) for applies, reason in _REFUSALS if applies(model)), None)


def require_exportable(model: ULLME, path: Path, keep_adapter: bool) -> None:
    """Pass if this model can be exported and the place is free.

    Raises:
        ValueError: it cannot, or the place is taken; the message says why and what to do.
    """
    if reason := refusal(model):
        raise ValueError(f"export: {reason}")
    if keep_adapter and model.peft_model is None:
        raise ValueError("export: keep_adapter: this model has no adapter to keep apart; leave it out")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"export: {str(path)!r} exists and is not empty; give another path or remove it")


def not_reproduced(model: ULLME, reason: str) -> ValueError:
    """The error for a model that sentence-transformers computes otherwise."""
    how = f"{model.config.model_type}, {model.attention} attention, switched by {model.switch.mechanism}"
    cure = "take an architecture whose class heeds the config's is_causal (docs/serving.md), or train it causal, or "
    return ValueError(f"export: sentence-transformers does not reproduce this model ({how}): {reason}; {cure}{_OURS}")


def merged_prompt(prompt: str, name: str) -> ValueError:
    """The error for a prompt whose last token merges with the text."""
    return ValueError(
        f"export: prompt {name!r} ({prompt!r}): sentence-transformers counts a prompt's tokens apart from the text and "
        "would leave a text's first token out of the pool where both merge; end the prompt with a line break, or "
        "export with prompts={} (--no-prompts)"
    )


def first_line(error: Any) -> str:
    """An error's class and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason').splitlines()[0][:200]}"
