"""What each of several gloo processes does in the distributed tests, and what one process does instead."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from tests.distributed.shares import CASES, joined, rank_batches
from tests.parity.float64 import in_float64
from tests.parity.oracle import embed_of, forward_of, measure_of
from tests.tiny import tiny_ullme
from tests.unit.training import FULL
from ullme.data import with_mismatched
from ullme.gradcache import gradcache_step
from ullme.models import ULLME
from ullme.objectives import PRESETS, named
from ullme.trainer.lockstep import Lockstep
from ullme.trainer.sharding import activate, configure, require_sharded
from ullme.types import Batch

LORA = {"lora_name": "test", "lora_r": 4}

#: Of each way to train: the settings of the model, and the presets and cases that are run.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "lora": ({**LORA}, tuple(PRESETS), tuple(CASES)),
    "lora, recomputed": ({**LORA, "gradient_checkpointing": True}, ("grl", "mntp"), ("even in chunks",)),
    # KTO's mismatched pairs are in no table of likelihoods, so it needs an adapter
    "full": (
        {**FULL},
        ("contrastive", "grl", "grl_cpo"),
        ("uneven in chunks, one rank idling", "a rank without queries"),
    ),
    "full, recomputed": ({**FULL, "gradient_checkpointing": True}, ("grl",), ("even in chunks",)),
}


@dataclass
class Found:
    """What a step left: gradients by name, mean losses and their weighted sum, and its number of chunks."""

    gradients: dict[str, Tensor]
    losses: dict[str, float]
    total: float
    chunks: int


Found_of = dict[tuple[str, str, str], Found]  # by variant, case and preset


def spawned(work: Callable[..., None], world: int, folder: Path) -> None:
    """Run ``work(rank, world, port, folder)`` in so many processes, forked from one that has imported all once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["tests.distributed.runs"])
    mp.start_processes(work, args=(world, port, folder), nprocs=world, start_method="forkserver")


def join_group(rank: int, world: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)


def save_models(folder: Path, tied: bool = True) -> None:
    """Weights that all processes share: those that a new adapter starts from are random in each."""
    for name, (settings, *_) in VARIANTS.items():
        model = tiny_ullme(folder, "llama", {"tie_word_embeddings": tied}, **settings)
        torch.save(model.state_dict(), folder / f"{name}.pt")


def model_of(folder: Path, variant: str) -> ULLME:
    model = tiny_ullme(folder, "llama", **VARIANTS[variant][0])
    model.load_state_dict(torch.load(folder / f"{variant}.pt", weights_only=True))
    return in_float64(model).train()


def one_step(model: nn.Module, batch: Batch, preset: str, chunk_tokens: int | None, **options: Any) -> Found:
    """A step of a preset from no gradient; DTensors are put together, which every process must do."""
    objectives = PRESETS[preset]
    model.zero_grad()
    result = gradcache_step(
        batch,
        forward=forward_of(model, objectives),
        embed=embed_of(model),
        measure=measure_of(model, objectives),
        objectives=named(objectives),
        chunk_tokens=chunk_tokens,
        **options,
    )
    assert all(loss_B.shape == (len(batch),) for loss_B in result.loss_B.values())
    losses = {name: float(value) for name, value in result.losses.items()}
    return Found(whole_gradients(model), losses, float(result.total), result.chunks)


def whole_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {n: (g.full_tensor() if isinstance(g, DTensor) else g).detach().clone() for n, g in found.items()}


@contextmanager
def ddp(model: ULLME) -> Iterator[tuple[nn.Module, Accelerator]]:
    TrainingArguments(use_cpu=True, report_to="none")  # a new beginning for accelerate
    accelerator = Accelerator(cpu=True)
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    yield wrapped, accelerator


@contextmanager
def fsdp2(model: ULLME) -> Iterator[tuple[nn.Module, Accelerator]]:
    """The model as the trainer has accelerate shard it."""
    options = TrainingArguments(use_cpu=True, fsdp=True, report_to="none").fsdp_plugin_args
    accelerator = Accelerator(cpu=True)
    activate(accelerator, options)
    configure(accelerator.state.fsdp_plugin, model)
    with Lockstep(model).attached():
        wrapped, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
        require_sharded(wrapped)
        yield wrapped, accelerator


WRAPPERS = {"DistributedDataParallel": ddp, "FSDPULLME": fsdp2}


def steps(rank: int, world: int, folder: Path) -> None:
    """Every variant, case and preset under each wrapper; each rank writes what it found."""
    for wrapper, wrap in WRAPPERS.items():
        found: Found_of = {}
        for variant, (_, presets, cases) in VARIANTS.items():
            with wrap(model_of(folder, variant)) as (model, accelerator):
                assert type(model).__name__ == wrapper
                for case in cases:
                    batch = with_mismatched(rank_batches(case, world, variant.startswith("full"))[rank])
                    options = {"no_sync": lambda m=model: accelerator.no_sync(m), "gradient_scale": world}
                    for preset in presets:
                        found[variant, case, preset] = one_step(model, batch, preset, CASES[case][2], **options)
        torch.save(found, folder / f"{wrapper}-{rank}.pt")


def one_process(folder: Path, world: int) -> Found_of:
    """The same on one process, the global batch at once."""
    found: Found_of = {}
    for variant, (_, presets, cases) in VARIANTS.items():
        model = model_of(folder, variant)
        for case in cases:
            batch = with_mismatched(joined(rank_batches(case, world, model.peft_model is None)))
            for preset in presets:
                found[variant, case, preset] = one_step(model, batch, preset, None)
    return found
