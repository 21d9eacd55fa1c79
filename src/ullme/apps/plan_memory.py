"""Bytes by purpose that a step of a run needs on each device, from the run file and texts; no weights are read."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ullme import distributed
from ullme.apps.plan_model import planned_model
from ullme.apps.plan_trace import ChunkMemory, LiveBytes, chunk_memory, merged
from ullme.config import RunConfig
from ullme.models import ULLME
from ullme.models.half import HalfWeights
from ullme.models.logprob import BLOCK_BYTES
from ullme.models.probe import CALL_ERRORS
from ullme.objectives import needs_of
from ullme.trainer.freezing import only_reached_trainable
from ullme.trainer.sharding import decoder_layers
from ullme.types import Batch

#: Bytes of a quantised weight: 4 bits, and the scales of blocks of 64.
_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.56}

#: Numbers that an optimizer keeps per trained weight and their bytes (None: the weight's own), by the start of its
#: name; any other is taken for an Adam.
_OPTIMIZER_STATES: Mapping[str, tuple[float, int | None]] = {
    "sgd": (0, None),
    "adafactor": (0.01, 4),  # a row and a column per matrix
    "lion_32bit": (1, None),
    "adamw_bnb_8bit": (2, 1),
    "adamw_8bit": (2, 1),
    "paged_adamw_8bit": (2, 1),
}

#: Hidden-sized values that a layer keeps for backward, per token (Korthikanti et al. 2022, "Reducing Activation
#: Recomputation in Large Transformer Models", equation 1, without attention scores: fused attention keeps none).
_ACTIVATIONS = 17

#: Bytes that glibc's heap holds of freed tensors: blocks of up to 32 MiB stand in one heap, what backward needs between
#: what was freed at once. A share of what is in use and a part of its own, but no more than so many times what is in
#: use; fitted to real steps (benchmarks/LOG.md), not derived.
_HEAP_SHARE, _HEAP_BASE, _HEAP_MOST = 0.35, 400 * 2**20, 3

_COUNTED = "counted by running the model's code on the largest sampled chunk, without weights"
_ESTIMATED = "a formula's: without weights the code of model type {kind!r} does not run ({error})"


@dataclass(frozen=True)
class MemoryPlan:
    """What a step needs.

    Attributes:
        parameters: weights of the model, all and trainable.
        sizes: bytes on each device, by purpose.
        devices: processes that share the run.
        source: how activations and workspace were found.
    """

    parameters: tuple[int, int]
    sizes: dict[str, int]
    devices: int
    source: str


@dataclass(frozen=True)
class LargestStep:
    """The texts that decide: the chunk of most tokens, and how many queries and passages the largest batch has."""

    chunk: Batch
    alone: bool
    queries: int
    passages: int


def memory_plan(config: RunConfig, model_config: Any, step: LargestStep) -> MemoryPlan:
    """Bytes by purpose while the largest chunk is computed, from the second step on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft and Transformers, about a model that has no name and no weights
        model = planned_model(config.model.settings(), model_config)
    if config.trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    devices, sharded = devices_of_run(), config.trainer.fsdp
    parameters = (_count(model), sum(p.numel() for p in model.parameters() if p.requires_grad))
    with only_reached_trainable(model, needs_of(config.objectives)):
        chunk, source = _chunk_memory(config, model, step)
        gradients = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        weights, gathered = _weights(model, config.model.quantization), _gathered(model) if sharded else 0
        share = devices if sharded else 1
        sizes = {
            "weights": weights // share,
            "half-precision copies": 0 if sharded else _half_copies(model, _autocast(config)),
            "gathered layers": gathered,
            "gradients": gradients // share,
            "gradients on their way": gradients if devices > 1 and not sharded else 0,
            _optimizer_name(config): _optimizer_bytes(config.trainer.optim, model) // share,
            "activations": chunk.kept,
            "workspace": max(0, chunk.peak - chunk.kept),
            "freed, kept by the C library": _kept_by_heap(chunk),
            "embeddings and their gradients": _embedding_bytes(config, model.embedding_dimension, step, devices),
        }
    optional = ("half-precision copies", "gathered layers", "gradients on their way", "freed, kept by the C library")
    return MemoryPlan(parameters, {n: size for n, size in sizes.items() if size or n not in optional}, devices, source)


def _kept_by_heap(chunk: ChunkMemory) -> int:
    """What a process on a CPU holds of freed tensors; none where the environment sends them to the operating system."""
    default = platform.libc_ver()[0] == "glibc" and "MALLOC_MMAP_THRESHOLD_" not in os.environ
    if not default or torch.cuda.is_available():
        return 0
    return int(min(_HEAP_MOST * chunk.peak, _HEAP_BASE + _HEAP_SHARE * chunk.peak))


def devices_of_run() -> int:
    """Processes that share the run: those that are there, or those that ``WORLD_SIZE`` announces."""
    return max(distributed.world_size(), int(os.environ.get("WORLD_SIZE", "1")))


def _chunk_memory(config: RunConfig, model: ULLME, step: LargestStep) -> tuple[ChunkMemory, str]:
    """What the largest chunk takes, and how that was found: packed, else padded, else by a formula."""
    chunk, half = step.chunk, not config.trainer.fsdp
    if config.reference == "precomputed":
        chunk = replace(chunk, ref_logp_BP=torch.zeros(chunk.passage_mask_BP.shape))
    ways = [(False, merged(chunk))]
    if model.switch.packs:
        ways.insert(0, (True, chunk))
    for packs, texts in ways:
        model.switch = replace(model.switch, packs=packs)
        try:
            found = chunk_memory(model, texts, needs_of(config.objectives), _autocast(config), half, step.alone)
            return found, _COUNTED
        except CALL_ERRORS as error:
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:100] if str(error) else ''}"
    return _formula(config, model, int(chunk.tokens_B().sum())), _ESTIMATED.format(
        kind=model.config.model_type, error=reason
    )


def _formula(config: RunConfig, model: ULLME, tokens: int) -> ChunkMemory:
    text_config = model.config.get_text_config(decoder=True)
    layers, dtype = text_config.num_hidden_layers, _autocast(config) or model.dtype
    values = layers + _ACTIVATIONS if config.trainer.gradient_checkpointing else layers * _ACTIVATIONS
    kept = tokens * text_config.hidden_size * values * dtype.itemsize
    return ChunkMemory(kept, kept + 3 * BLOCK_BYTES["cuda" if torch.cuda.is_available() else "cpu"])


def _autocast(config: RunConfig) -> torch.dtype | None:
    return torch.bfloat16 if config.trainer.bf16 else torch.float16 if config.trainer.fp16 else None


def _weights(model: ULLME, quantization: str | None) -> int:
    """Bytes of all weights; of quantised ones, which are those of the decoder's linear layers, as they are stored."""
    size = sum(p.nbytes for p in model.parameters())
    if quantization is None:
        return size
    head = model.causal_lm.get_output_embeddings()
    linear = [m.weight for m in model.causal_lm.modules() if type(m) is nn.Linear and m is not head]
    frozen = [w for w in linear if not w.requires_grad]
    return size - sum(w.nbytes for w in frozen) + int(sum(w.numel() for w in frozen) * _QUANTIZED_BYTES[quantization])


def _gathered(model: ULLME) -> int:
    """What FSDP2 holds whole on every device: what is outside the layers, one layer, and the next on its way."""
    layers = [sum(p.nbytes for p in layer.parameters()) for layer in decoder_layers(model)]
    return sum(p.nbytes for p in model.parameters()) - sum(layers) + 2 * max(layers)


def _half_copies(model: ULLME, autocast: torch.dtype | None) -> int:
    if autocast is None:
        return 0
    with LiveBytes() as live:
        live.ignore(list(model.parameters()))
        copies = HalfWeights(model, autocast)
        size = live.now
    del copies
    return size


def _optimizer_name(config: RunConfig) -> str:
    known = any(config.trainer.optim.startswith(start) for start in _OPTIMIZER_STATES)
    return f"optimizer ({config.trainer.optim if known else 'Adam'})"


def _optimizer_bytes(optim: str, model: ULLME) -> int:
    states, size = next((row for start, row in _OPTIMIZER_STATES.items() if optim.startswith(start)), (2, None))
    trained = [p for p in model.parameters() if p.requires_grad]
    return int(sum(states * p.numel() * (p.itemsize if size is None else size) for p in trained))


def _embedding_bytes(config: RunConfig, width: int, step: LargestStep, devices: int) -> int:
    """Embeddings where an objective couples the batch, in float32.

    Twice this device's own (with their cached gradients), and of the global batch the leaves, their gradients and their
    normalised copies; four matrices of every query's score of every passage.
    """
    if not any(objective.couples_batch for objective in config.objectives):
        return 0
    own = step.queries + step.passages
    scores = step.queries * (step.queries + step.passages) * devices**2
    return 4 * (width * own * (2 + 3 * devices) + 4 * scores)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
