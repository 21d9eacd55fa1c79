"""What each of several gloo processes does in the distributed tests, and what one process does instead."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from tests.batches import random_batch
from tests.parity.float64 import in_float64
from tests.parity.oracle import embed_of, forward_of, gradients, measure_of
from tests.tiny import tiny_ullme
from tests.unit.training import pairs, trainer, weights
from ullme.data import with_mismatched
from ullme.gradcache import gradcache_step
from ullme.models import ULLME
from ullme.objectives import PRESETS, named
from ullme.types import Batch, MaskedTexts, Texts

#: Queries of each rank, passages per query of each rank, tokens of a chunk.
CASES = {
    "uneven": ([3, 2], [4, 3], 100_000),
    "uneven in chunks, one rank idling": ([5, 1], [3, 3], 1),
    "a rank without queries": ([2, 0], [3, 3], 60),
    "a rank without queries, one chunk": ([2, 0], [3, 3], 100_000),
}


def model_of(folder: Path) -> ULLME:
    torch.manual_seed(0)
    model = tiny_ullme(folder, "llama", lora_name="test", lora_r=4)
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return in_float64(model).train()


def rank_batches(case: str) -> list[Batch]:
    """Each rank's share of the global batch; keys and texts are distinct over all ranks."""
    queries, passages, _ = CASES[case]
    total = random_batch(sum(queries), max(passages), seed=9, generation=True, ragged=True)
    starts = [sum(queries[:rank]) for rank in range(len(queries))]
    parts = [total.rows(range(start, start + n)) for start, n in zip(starts, queries, strict=True)]
    return [_narrowed(part, p) for part, p in zip(parts, passages, strict=True)]


def _narrowed(batch: Batch, passages: int) -> Batch:
    """The first passages of each query."""
    width = batch.passage_mask_BP.shape[1]
    kept = [b * width + p for b in range(len(batch)) for p in range(passages)]
    return replace(
        batch,
        passage=batch.passage.rows(kept),
        generation=batch.generation.rows(kept),
        passage_mask_BP=batch.passage_mask_BP[:, :passages],
        positive_mask_BP=batch.positive_mask_BP[:, :passages],
        passage_key_BP=batch.passage_key_BP[:, :passages],
        teacher_BP=batch.teacher_BP[:, :passages],
    )


def _step(model, batch: Batch, preset: str, chunk_tokens: int | None, **options):
    objectives = PRESETS[preset]
    model.zero_grad()
    return gradcache_step(
        batch,
        forward=forward_of(model, objectives),
        embed=embed_of(model),
        measure=measure_of(model, objectives),
        objectives=named(objectives),
        chunk_tokens=chunk_tokens,
        **options,
    )


def join_group(rank: int, world: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)


def worker(rank: int, world: int, port: int, folder: Path) -> None:
    """Every case and preset under DDP, then a run of the Trainer; rank 0 writes what came out."""
    join_group(rank, world, port)
    bare = model_of(folder)
    model = DistributedDataParallel(bare, find_unused_parameters=True)
    found = {}
    for case, (_, _, chunk_tokens) in CASES.items():
        batch = with_mismatched(rank_batches(case)[rank])
        for preset in PRESETS:
            result = _step(
                model, with_mismatched(batch), preset, chunk_tokens, no_sync=model.no_sync, gradient_scale=world
            )
            found[case, preset] = gradients(bare), float(result.total), result.chunks
            assert all(loss_B.shape == (len(batch),) for loss_B in result.loss_B.values())
    run = trainer(folder / "ddp", _fresh(folder), "grl", **RUN)
    found["run"] = train(run)
    found["wrapper"] = type(run.wrapped_while_training).__name__
    torch.save(found, folder / f"found-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


#: 24 rows in batches of 10 over the ranks: the last one is uneven.
RUN = {"max_steps": 4, "chunk_tokens": 120, "per_device_train_batch_size": 5, "learning_rate": 1e-3}


def _fresh(folder: Path) -> ULLME:
    model = tiny_ullme(folder, "llama", lora_name="test", lora_r=4)
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return model


def train(run):
    """Losses of each step, evaluation and final weights of a run."""
    step = run.training_step

    def watching(model, inputs, count=None):
        run.wrapped_while_training = model
        return step(model, inputs, count)

    run.training_step = watching
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    evaluated = run.evaluate(pairs(13))
    return losses, {k: v for k, v in evaluated.items() if k.endswith("loss")}, weights(run.model)


def one_process(folder: Path):
    """The same on one process, the global batch at once."""
    model, found = model_of(folder), {}
    for case in CASES:
        batch = with_mismatched(joined(rank_batches(case)))
        for preset in PRESETS:
            result = _step(model, batch, preset, None)
            found[case, preset] = gradients(model), float(result.total)
    run = trainer(folder / "single", _fresh(folder), "grl", **{**RUN, "per_device_train_batch_size": 10})
    found["run"] = train(run)
    return found


def joined(parts: list[Batch]) -> Batch:
    """The global batch of the ranks' shares, absent passages filling the narrower ones."""
    parts = [part for part in parts if len(part)]
    width = max(part.passage_mask_BP.shape[1] for part in parts)

    def widened(texts: Texts, part: Batch) -> Texts:
        missing = (0, width - part.passage_mask_BP.shape[1])
        shape = part.passage_mask_BP.shape
        lengths, skip = (pad(t.view(shape), missing).flatten() for t in (texts.lengths_N, texts.skip_N))
        return Texts(texts.ids_X, lengths, skip)

    def together(all_texts: list[Texts]) -> Texts:
        return Texts(*(torch.cat([getattr(t, n) for t in all_texts]) for n in ("ids_X", "lengths_N", "skip_N")))

    def stacked(name: str, value: int = 0):
        tensors = [getattr(part, name) for part in parts]
        return torch.cat([pad(t, (0, width - t.shape[1]), value=value) if t.dim() == 2 else t for t in tensors])

    masked = [part.masked for part in parts]
    return Batch(
        query=together([part.query for part in parts]),
        passage=together([widened(part.passage, part) for part in parts]),
        generation=together([widened(part.generation, part) for part in parts]),
        passage_mask_BP=stacked("passage_mask_BP"),
        positive_mask_BP=stacked("positive_mask_BP"),
        query_key_B=stacked("query_key_B"),
        passage_key_BP=stacked("passage_key_BP", -1),
        row_ids=tuple(row for part in parts for row in part.row_ids),
        masked=MaskedTexts(together([m.texts for m in masked]), torch.cat([m.target_X for m in masked])),
        teacher_BP=stacked("teacher_BP"),
    )
