"""What a run would do: batches, tokens and memory, from its run file, data and tokenizer; no weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from rich.table import Table
from transformers import AutoModelForCausalLM

from ullme.apps.run_data import REFERENCE_FOLDER, build_loader, load_training_pairs
from ullme.apps.run_folder import require_own_folder
from ullme.apps.train import require_known_tasks
from ullme.batching import consecutive_chunks
from ullme.config import RunConfig
from ullme.data import PairDataset
from ullme.models.loading import load_config, load_tokenizer, resolve
from ullme.models.lora import add_adapter
from ullme.models.pooling import Pooling
from ullme.models.settings import ModelSettings
from ullme.types import Batch

#: Batches that are tokenised to see how long texts are.
SAMPLED_BATCHES = 20

_BYTES = {"float32": 4, "auto": 4, "bfloat16": 2, "float16": 2}
_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.56}  # 4 bits, and the scales of blocks of 64
_ADAM_BYTES = 8  # two float32 moments
_GRADIENT_BYTES = 4

#: Hidden-sized values that a layer keeps for backward, per token (Korthikanti et al. 2022, "Reducing Activation
#: Recomputation in Large Transformer Models", equation 1, without attention scores: fused attention keeps none).
_ACTIVATIONS = 17


#: What is said of the source of the original LLM's likelihoods.
_REFERENCES = {
    None: "none: no objective compares with the original LLM",
    "live": "live: the model without its adapter scores every batch once more, without gradient",
    "precomputed": "precomputed: the original LLM scores every passage once before training, kept in {folder}",
}


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        rows: rows of training data, by source.
        negatives: rows that have a negative; None where the data is a stream.
        batches_per_epoch: batches of the global batch size.
        steps: optimizer steps of the run.
        batch_rows: rows of a global batch.
        tokens: quantiles of a batch's tokens over the sampled batches: median and largest.
        text_tokens: quantiles of a text's tokens (median, 95th percentile, largest), by kind of text.
        cut: share of texts that reach ``max_length``, by kind of text.
        chunks: chunks of a step: median and largest.
        parameters: weights of the model, all and trainable.
        memory: bytes by purpose; activations are an estimate.
        reference: whence the original LLM's likelihoods come.
    """

    rows: dict[str, int]
    negatives: int | None
    batches_per_epoch: int
    steps: int
    batch_rows: int
    tokens: tuple[int, int]
    text_tokens: dict[str, tuple[int, int, int]]
    cut: dict[str, float]
    chunks: tuple[int, int]
    parameters: tuple[int, int]
    memory: dict[str, int]
    reference: str

    def table(self) -> Table:
        """The plan to be read by people."""
        table = Table("", "Plan", title="Dry run: nothing was trained, nothing was written", show_header=False)
        for source, rows in self.rows.items():
            table.add_row(f"rows of {source}", f"{rows:,}")
        table.add_row(
            "rows with negatives", "known once it is read" if self.negatives is None else f"{self.negatives:,}"
        )
        table.add_row("batches", f"{self.batches_per_epoch:,} per epoch, of {self.batch_rows} rows")
        table.add_row("steps", f"{self.steps:,}")
        table.add_row("tokens of a batch", f"median {self.tokens[0]:,}, largest {self.tokens[1]:,}")
        for kind, (median, high, largest) in self.text_tokens.items():
            spread = f"median {median}, 95% below {high}, largest {largest}, {self.cut[kind]:.1%} at the limit"
            table.add_row(f"tokens of a {kind}", spread)
        table.add_row("chunks of a step", f"median {self.chunks[0]}, largest {self.chunks[1]}")
        table.add_row("parameters", f"{self.parameters[0]:,}, of which {self.parameters[1]:,} are trained")
        table.add_row("reference", self.reference)
        for purpose, size in self.memory.items():
            table.add_row(f"memory: {purpose}", _readable(size))
        table.add_row("memory: together", f"{_readable(sum(self.memory.values()))} per device, before any sharding")
        return table


def plan(config: RunConfig) -> Plan:
    """The plan of a run: its data is read and a sample of it tokenised, its model is built without weights.

    Raises:
        ValueError: as training would: data, model name or tokenizer that cannot be read.
    """
    require_own_folder(config)
    require_known_tasks(config)
    dataset = load_training_pairs(config)
    settings = config.model.settings()
    source = resolve(settings)
    model_config = load_config(settings, source)
    loader = build_loader(config, dataset, settings.text_tokenizer(load_tokenizer(settings, source)))
    sample = list(islice(loader, SAMPLED_BATCHES))
    tokens = [int(batch.tokens_B().sum()) for batch in sample]
    cuts = [consecutive_chunks(batch.tokens_B().tolist(), config.trainer.chunk_tokens) for batch in sample]
    largest_chunk = max(
        sum(int(batch.tokens_B()[b]) for b in chunk)
        for batch, chunks in zip(sample, cuts, strict=True)
        for chunk in chunks
    )
    weights = _weights(settings, model_config)
    per_epoch = len(loader)
    trainer = config.trainer
    return Plan(
        rows={name: len(part) for name, part in zip(dataset.sources, dataset.source_rows(), strict=True)},
        negatives=int((dataset.negatives_N() > 0).sum()) if isinstance(dataset, PairDataset) else None,
        batches_per_epoch=per_epoch,
        steps=trainer.max_steps if trainer.max_steps > 0 else int(np.ceil(per_epoch * trainer.num_train_epochs)),
        batch_rows=max(map(len, sample)),
        tokens=(int(np.median(tokens)), max(tokens)),
        text_tokens={kind: _spread(lengths) for kind, lengths in _lengths(sample).items()},
        cut={kind: float((lengths >= settings.max_length).mean()) for kind, lengths in _lengths(sample).items()},
        chunks=(int(np.median([len(c) for c in cuts])), max(len(c) for c in cuts)),
        parameters=(weights.backbone + weights.added, weights.trained),
        memory=_memory(config, model_config, weights, largest_chunk, max(map(_embeddings, sample))),
        reference=_REFERENCES[config.reference].format(folder=config.trainer.output_dir / REFERENCE_FOLDER),
    )


@dataclass(frozen=True)
class _Weights:
    """Numbers of weights: of the backbone, added to it (adapter, pooler), and trained; and the embedding's width."""

    backbone: int
    added: int
    trained: int
    width: int


def _weights(settings: ModelSettings, model_config: Any) -> _Weights:
    """Counted on a model without storage; an existing adapter is taken to be of the size of a new one."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=settings.trust_remote_code)
        width = model.get_input_embeddings().embedding_dim
        backbone = _count(model)
        pooler = _count(Pooling(settings.pooling, width))
        if settings.has_adapter:
            add_adapter(model, replace(settings, adapter_path=None, lora_name=settings.lora_name or "planned"))
        adapter = _count(model) - backbone
    return _Weights(backbone, adapter + pooler, pooler + (adapter if settings.has_adapter else backbone), width)


def _memory(
    config: RunConfig, model_config: Any, weights: _Weights, chunk_tokens: int, embeddings: int
) -> dict[str, int]:
    """Bytes by purpose while the largest chunk is computed, in a batch of that many embeddings."""
    settings, trainer = config.model.settings(), config.trainer
    text_config = model_config.get_text_config(decoder=True)
    layers, width = text_config.num_hidden_layers, text_config.hidden_size
    size = 2 if trainer.bf16 or trainer.fp16 else _BYTES[settings.dtype]
    values = layers + _ACTIVATIONS if trainer.gradient_checkpointing else layers * _ACTIVATIONS
    backbone = weights.backbone * _QUANTIZED_BYTES.get(settings.quantization or "", _BYTES[settings.dtype])
    return {
        "weights": int(backbone) + 4 * weights.added,
        "gradients": weights.trained * _GRADIENT_BYTES,
        "optimizer (Adam)": weights.trained * _ADAM_BYTES,
        "activations (estimate)": chunk_tokens * width * values * size,
        "embeddings and their gradients": 2 * 4 * embeddings * weights.width,
    }


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _embeddings(batch: Batch) -> int:
    return len(batch.query) + len(batch.passage)


def _lengths(batches: Sequence[Batch]) -> dict[str, np.ndarray]:
    """Tokens of every text of these batches, by kind; absent passages left out."""
    found = {"query": [b.query for b in batches], "passage": [b.passage for b in batches]}
    scored = [b.generation for b in batches if b.generation is not None]
    if scored:
        found["scored passage with its query"] = scored
    lengths = {kind: np.concatenate([t.lengths_N.numpy() for t in texts]) for kind, texts in found.items()}
    return {kind: value[value > 0] for kind, value in lengths.items()}


def _spread(lengths: np.ndarray) -> tuple[int, int, int]:
    return int(np.median(lengths)), int(np.percentile(lengths, 95)), int(lengths.max())


def _readable(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
