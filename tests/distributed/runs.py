"""Whole runs of the trainer on several gloo processes, and the same run on one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.distributed.workers import LORA, join_group
from tests.tiny import tiny_ullme
from tests.unit.training import FULL, pairs, trainer, weights
from ullme.models import ULLME
from ullme.trainer import EmbeddingTrainer

#: 24 rows in batches of 10: the last one of an epoch has 4.
BATCH = 10
RUN = {"max_steps": 4, "chunk_tokens": 120, "learning_rate": 1e-3, "eval_strategy": "steps", "eval_steps": 2}

#: Settings of the model, objectives and further arguments of each run.
RUNS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "lora": (LORA, "grl", {}),
    "full, recomputed": (FULL, "grl_cpo", {"activation_checkpointing": True}),
    "full, each chunk exchanged": (
        FULL,
        "grl_cpo",
        {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}},
    ),
    "bf16": (LORA, "grl", {"bf16": True}),
}


#: Whether the trainer is told to shard.
SHARDED = {"DDP": False, "FSDP2": True}


@dataclass
class Run:
    """What a run left: losses of its steps, evaluations, final weights, and the rows of each step."""

    wrapper: str = ""
    losses: list[float] = field(default_factory=list)
    evaluated: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    rows: list[tuple[str, ...]] = field(default_factory=list)
    wrapped: set[str] = field(default_factory=set)


def save_weights(folder: Path, name: str) -> None:
    torch.save(tiny_ullme(folder, "llama", **RUNS[name][0]).state_dict(), folder / "weights.pt")


def model_of(folder: Path, name: str) -> ULLME:
    model = tiny_ullme(folder, "llama", **RUNS[name][0])
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return model


def trainer_of(folder: Path, name: str, world: int, **options: Any) -> EmbeddingTrainer:
    _, objectives, own = RUNS[name]
    options = {**RUN, **own, "per_device_eval_batch_size": 4, **options}
    return trainer(
        folder / f"{name}-{world}",
        model_of(folder, name),
        objectives,
        eval_dataset=pairs(13),
        per_device_train_batch_size=BATCH // world,
        **options,
    )


def run_of(trained: EmbeddingTrainer, checkpoint: str | None = None) -> Run:
    """Train, from a checkpoint if there is one, and watch."""
    run, step = Run(), trained.training_step

    def watching(model: Any, batch: Any, count: Any = None) -> Tensor:
        run.wrapper = type(model).__name__
        run.wrapped = {type(module).__name__ for module in model.modules()}
        run.rows.append(batch.row_ids)
        return step(model, batch, count)

    trained.training_step = watching
    trained.train(checkpoint)
    logs = trained.state.log_history
    run.losses = [entry["loss"] for entry in logs if "loss" in entry]
    run.evaluated = [entry["eval_loss"] for entry in logs if "eval_loss" in entry]
    run.weights = weights(trained.model)
    return run


def runs(name: str, rank: int, world: int, port: int, folder: Path) -> None:
    """A run as it is, sharded, and sharded from a checkpoint on; each rank writes what it found."""
    join_group(rank, world, port)
    found = {}
    for kind, sharded in SHARDED.items():
        options = {"output_dir": str(folder / kind), "fsdp": sharded or None, "save_strategy": "steps", "save_steps": 2}
        found[kind] = run_of(trainer_of(folder, name, world, **options))
    again = run_of(trainer_of(folder, name, world, **options), str(folder / kind / "checkpoint-2"))
    found[f"{kind} from its checkpoint"] = again
    torch.save(found, folder / f"run-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
