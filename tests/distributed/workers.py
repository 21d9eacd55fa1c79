"""What each of several gloo processes does in the distributed tests, and what one process does instead."""

from __future__ import annotations

import copy
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
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
from ullme.models.attention import text_decoder
from ullme.objectives import PRESETS, named
from ullme.trainer.lockstep import Lockstep
from ullme.trainer.sharding import activate, configure, require_sharded
from ullme.types import Batch

LORA = {"lora_name": "test", "lora_r": 4}


@dataclass(frozen=True)
class Variant:
    """A way to train: the model, the presets and cases that are run, and how accelerate is to shard."""

    settings: dict[str, Any]
    presets: tuple[str, ...]
    cases: tuple[str, ...]
    model_type: str = "llama"
    changes: dict[str, Any] | None = None
    fsdp_config: dict[str, Any] = field(default_factory=dict)


_LONE = ("uneven in chunks, one rank idling", "a rank without queries")
_EVEN = ("even in chunks",)
_CHECKPOINTED = {"gradient_checkpointing": True}
_NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}

VARIANTS = {
    "lora": Variant(LORA, tuple(PRESETS), ("uneven", *_LONE, "a rank without queries, one chunk")),
    "lora, recomputed": Variant({**LORA, **_CHECKPOINTED}, ("grl_kto", "mntp"), _EVEN),
    "lora, padded": Variant({**LORA, "packing": False}, ("grl", "grl_kto", "mntp"), ("uneven in passes",)),
    "lora, kept whole after forward": Variant(LORA, ("grl",), _EVEN, fsdp_config={"reshard_after_forward": False}),
    # KTO's mismatched pairs are in no table of likelihoods, so it needs an adapter
    "full": Variant(FULL, ("grl", "grl_cpo"), _LONE),
    "full, recomputed": Variant({**FULL, **_CHECKPOINTED}, ("grl",), _EVEN),
    "full, tied": Variant(FULL, ("contrastive", "grl"), _EVEN, "gpt2", _NO_DROPOUT),
    "latent pooling": Variant({**LORA, "pooling": "latent"}, ("grl",), _EVEN, "qwen3"),
}


@dataclass
class Found:
    """What a step left: gradients by name, mean losses and their weighted sum, numbers of chunks and of passes."""

    gradients: dict[str, Tensor]
    losses: dict[str, float]
    total: float
    chunks: int
    passes: int


Key = tuple[str, str, str]  # variant, case and preset


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


def save_models(folder: Path, names: Sequence[str]) -> None:
    """Weights that all processes share: those that a new adapter starts from are random in each."""
    for name in names:
        variant = VARIANTS[name]
        model = tiny_ullme(folder, variant.model_type, variant.changes, **variant.settings)
        torch.save(model.state_dict(), folder / f"{name}.pt")


def model_of(folder: Path, name: str) -> ULLME:
    """The model of a variant, in float64."""
    model = tiny_ullme(folder, VARIANTS[name].model_type, **VARIANTS[name].settings)
    model.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    return in_float64(model).train()


def one_step(model: nn.Module, batch: Batch, preset: str, chunk_tokens: int | None, **options: Any) -> Found:
    """A step of a preset from no gradient; DTensors are put together, which every process must do."""
    objectives = PRESETS[preset]
    model.zero_grad()
    passes: list[None] = []
    decoder = text_decoder(getattr(model, "module", model).causal_lm)
    counting = decoder.register_forward_hook(lambda *_: passes.append(None))
    result = gradcache_step(
        batch,
        forward=forward_of(model, objectives),
        embed=embed_of(model),
        measure=measure_of(model, objectives),
        objectives=named(objectives),
        chunk_tokens=chunk_tokens,
        **options,
    )
    counting.remove()
    assert all(loss_B.shape == (len(batch),) for loss_B in result.loss_B.values())
    losses = {name: float(value) for name, value in result.losses.items()}
    return Found(whole_gradients(model), losses, float(result.total), result.chunks, len(passes))


def whole_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {n: (g.full_tensor() if isinstance(g, DTensor) else g).detach().clone() for n, g in found.items()}


@contextmanager
def ddp(model: ULLME, fsdp_config: dict[str, Any]) -> Iterator[tuple[nn.Module, Accelerator]]:
    """The model in torch's wrapper."""
    TrainingArguments(use_cpu=True, report_to="none")  # a new beginning for accelerate
    yield nn.parallel.DistributedDataParallel(model, find_unused_parameters=True), Accelerator(cpu=True)


@contextmanager
def fsdp2(model: ULLME, fsdp_config: dict[str, Any]) -> Iterator[tuple[nn.Module, Accelerator]]:
    """The model as the trainer has accelerate shard it."""
    arguments = TrainingArguments(use_cpu=True, fsdp=True, fsdp_config=dict(fsdp_config), report_to="none")
    accelerator = Accelerator(cpu=True)
    activate(accelerator, arguments.fsdp_plugin_args)
    configure(accelerator.state.fsdp_plugin, model)
    with Lockstep(model).attached():
        wrapped, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
        require_sharded(wrapped)
        yield wrapped, accelerator


#: By the class of the wrapped model.
WRAPPERS = {"DistributedDataParallel": ddp, "FSDPULLME": fsdp2}


def steps(names: Sequence[str], rank: int, world: int, port: int, folder: Path) -> None:
    """Every variant, case and preset under each wrapper; each rank writes what it found."""
    join_group(rank, world, port)
    found: dict[str, dict[Key, Found]] = {wrapper: {} for wrapper in WRAPPERS}
    for name in names:
        variant, model = VARIANTS[name], model_of(folder, name)
        for wrapper, wrap in WRAPPERS.items():
            with wrap(copy.deepcopy(model), variant.fsdp_config) as (wrapped, accelerator):
                assert type(wrapped).__name__ == wrapper
                options = {"no_sync": partial(accelerator.no_sync, wrapped), "gradient_scale": world}
                for case in variant.cases:
                    batch = with_mismatched(rank_batches(case, world, reference=model.peft_model is None)[rank])
                    for preset in variant.presets:
                        step = one_step(wrapped, batch, preset, CASES[case][2], **options)
                        found[wrapper][name, case, preset] = step
    torch.save(found, folder / f"steps-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def one_process(folder: Path, names: Sequence[str], world: int) -> dict[Key, Found]:
    """The same on one process, the global batch at once."""
    found: dict[Key, Found] = {}
    for name in names:
        variant, model = VARIANTS[name], model_of(folder, name)
        for case in variant.cases:
            batch = with_mismatched(joined(rank_batches(case, world, reference=model.peft_model is None)))
            for preset in variant.presets:
                found[name, case, preset] = one_step(model, batch, preset, None)
    return found
