"""LoRA through peft: a new adapter, an existing one, and the reference model that is the adapter switched off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from ullme.models.fused_lora import fuse
from ullme.models.modes import eval_mode
from ullme.models.settings import ModelSettings
from ullme.models.tensors import read_safetensors, require_same_tensors

ADAPTER_CONFIG = "adapter_config.json"
#: Keys of an adapter's config that say where it comes from.
PLACES = ("base_model_name_or_path", "revision", "inference_mode", "peft_version")


def add_adapter(causal_lm: PreTrainedModel, settings: ModelSettings) -> PeftModel | None:
    """Put the adapter that the settings ask for inside the causal LM, trainable; None if they ask for none.

    Raises:
        ValueError: no such target module, or no readable adapter at ``adapter_path``.
    """
    if settings.adapter_path:
        return load_adapter(causal_lm, Path(settings.adapter_path))
    if not settings.lora_name:
        return None
    targets = settings.lora_target_modules
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=causal_lm.name_or_path,
    )
    try:
        return _economical(get_peft_model(causal_lm, config))
    except ValueError as error:
        raise ValueError(f"lora_target_modules: {targets!r} does not fit this model ({error})") from error


class _UnlessAutocast:
    """A flag that is off under autocast."""

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type

    def __bool__(self) -> bool:
        return not torch.is_autocast_enabled(self.device_type)


def _economical(peft_model: PeftModel) -> PeftModel:
    """The model, whose LoRA layers make fewer copies and passes.

    They cast their input to the adapter's float32 only where autocast casts nothing back: under autocast each would
    otherwise make a float32 copy of its input and keep, for backward, a half-precision copy of that copy, beside the
    input itself that the base layer keeps. In training, base and low-rank output are one step (``fused_lora``).
    """
    for module in peft_model.modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            layer.cast_input_dtype_enabled = _UnlessAutocast(next(layer.parameters()).device.type)
            fuse(module)
    return peft_model


def load_adapter(causal_lm: PreTrainedModel, folder: Path) -> PeftModel:
    """Put a saved peft adapter inside the causal LM, trainable, every tensor accounted for.

    Raises:
        ValueError: the folder holds no adapter in safetensors, a damaged one, or one for another model.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(f"adapter {str(folder)!r}: no {ADAPTER_CONFIG} there; give a folder saved by ullme or peft")
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"adapter {str(folder)!r}: {ADAPTER_CONFIG} cannot be read ({error})") from error
    config.inference_mode = False
    peft_model = _economical(get_peft_model(causal_lm, config))
    load_adapter_weights(peft_model, folder)
    return peft_model


def load_adapter_weights(peft_model: PeftModel, folder: Path) -> None:
    """Give an adapter the tensors saved in a folder; ValueError if they are damaged or not exactly its own."""
    saved = read_safetensors(folder / "adapter_model.safetensors")
    require_same_tensors(f"adapter {str(folder)!r}", saved, get_peft_model_state_dict(peft_model))
    set_peft_model_state_dict(peft_model, saved)


def sort_module_names(folder: Path) -> None:
    """Sort the modules that a saved adapter's config names: peft writes a set, in another order in every process.

    An adapter that is saved once more is then the same file, and is known again where it is merged.
    """
    file = folder / ADAPTER_CONFIG
    config = json.loads(file.read_text())
    for names in map(config.get, ("target_modules", "exclude_modules")):
        if isinstance(names, list):
            names.sort()
    file.write_text(json.dumps(config, indent=2, sort_keys=True))


def adapter_settings(settings: ModelSettings, peft_model: PeftModel) -> ModelSettings:
    """The settings with the numbers of the LoRA adapter that the model has, which a loaded one brings along."""
    config: Any = peft_model.active_peft_config
    if not isinstance(config, LoraConfig) or config.target_modules is None:
        return settings
    targets = config.target_modules
    return replace(
        settings,
        lora_r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        lora_target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
    )


def decisive_config(peft_model: PeftModel) -> dict[str, Any]:
    """What an adapter's config says beside the defaults and decides an embedding, as JSON values."""
    config = peft_model.active_peft_config
    usual = type(config)().to_dict()
    stated = {name: value for name, value in config.to_dict().items() if value != usual.get(name)}
    passed = (*PLACES, "lora_dropout")
    return {k: sorted(v) if isinstance(v, set) else v for k, v in stated.items() if k not in passed}


def original_tensors(causal_lm: PreTrainedModel, peft_model: PeftModel | None) -> dict[str, Any]:
    """What is in the original LLM's state, by its own names: adapters inside it are left out."""
    state = causal_lm.state_dict()
    if peft_model is None:
        return state
    own = (f".{peft_model.base_model.prefix}", ".modules_to_save.")
    kept = {name: value for name, value in state.items() if not any(part in f".{name}" for part in own)}
    return {name.replace(".base_layer.", ".").replace(".original_module.", "."): v for name, v in kept.items()}


@contextmanager
def reference_mode(model: nn.Module, peft_model: PeftModel) -> Iterator[None]:
    """The original LLM: every adapter off, eval mode; afterwards all as it was, frozen parameters included.

    ``disable_adapter`` of peft turns ``requires_grad`` back on for every adapter when it ends, so it is restored here.
    """
    trainable = {name: parameter.requires_grad for name, parameter in peft_model.named_parameters()}
    try:
        with eval_mode(model), peft_model.disable_adapter():
            yield
    finally:
        for name, parameter in peft_model.named_parameters():
            parameter.requires_grad_(trainable[name])
