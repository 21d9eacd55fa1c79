"""What a run would do: batches, tokens and memory, from its run file, data and tokenizer; no weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from rich.table import Table

from ullme.apps.plan_memory import LargestStep, memory_plan
from ullme.apps.run_data import REFERENCE_FOLDER, build_loader, load_training_pairs
from ullme.apps.run_folder import require_own_folder
from ullme.apps.train import require_known_tasks
from ullme.batching import consecutive_chunks
from ullme.config import RunConfig
from ullme.data import PairDataset
from ullme.models.loading import load_config, load_tokenizer, resolve
from ullme.types import Batch

#: Batches that are tokenised to see how long texts are.
SAMPLED_BATCHES = 20

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
        memory: bytes on each device while the largest chunk is computed, by purpose.
        memory_source: how activations and workspace were found.
        devices: processes that share the run.
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
    memory_source: str
    devices: int
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
        table.add_row("memory: together", f"{_readable(sum(self.memory.values()))} on each of {self.devices} device(s)")
        table.add_row("activations and workspace", self.memory_source)
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
    memory = memory_plan(config, model_config, _largest_step(sample, cuts))
    per_epoch = int(np.ceil(len(loader) / memory.devices))  # a batch of the sample is one device's share
    trainer = config.trainer
    return Plan(
        rows={name: len(part) for name, part in zip(dataset.sources, dataset.source_rows(), strict=True)},
        negatives=int((dataset.negatives_N() > 0).sum()) if isinstance(dataset, PairDataset) else None,
        batches_per_epoch=per_epoch,
        steps=trainer.max_steps if trainer.max_steps > 0 else int(np.ceil(per_epoch * trainer.num_train_epochs)),
        batch_rows=max(map(len, sample)) * memory.devices,
        tokens=(int(np.median(tokens)), max(tokens)),
        text_tokens={kind: _spread(lengths) for kind, lengths in _lengths(sample).items()},
        cut={kind: float((lengths >= settings.max_length).mean()) for kind, lengths in _lengths(sample).items()},
        chunks=(int(np.median([len(c) for c in cuts])), max(len(c) for c in cuts)),
        parameters=memory.parameters,
        memory=memory.sizes,
        memory_source=memory.source,
        devices=memory.devices,
        reference=_REFERENCES[config.reference].format(folder=config.trainer.output_dir / REFERENCE_FOLDER),
    )


def _largest_step(sample: Sequence[Batch], cuts: Sequence[list[list[int]]]) -> LargestStep:
    """The chunk of most tokens among these batches' chunks, and the size of the largest batch."""
    places = [(i, chunk) for i, chunks in enumerate(cuts) for chunk in chunks]
    at, rows = max(places, key=lambda place: int(sample[place[0]].tokens_B()[place[1]].sum()))
    return LargestStep(
        chunk=sample[at].rows(rows),
        alone=max(map(len, cuts)) == 1,
        queries=max(map(len, sample)),
        passages=max(len(batch.passage) for batch in sample),
    )


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
