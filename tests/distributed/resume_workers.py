"""What each of two gloo processes does in ``test_resume.py``: runs, resumed ones, and what goes wrong in one."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from tests.distributed.workers import join_group
from tests.unit.training import FULL, tiny_model, trainer, weights
from ullme.trainer import resume
from ullme.trainer.signals import StopOnSignal

#: A coupled preset with an adapter and dropout, and a plain objective of which every weight trains.
CASES = {"grl": {"objectives": "grl"}, "sft, all weights": {"objectives": [{"type": "sft"}], "settings": FULL}}

#: 24 rows in global batches of 10: the last of an epoch's three is split 2 and 2. Logs cross checkpoints and epochs.
OPTIONS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "logging_steps": 3, "chunk_tokens": 300}
GLOBAL_ROWS = 10

#: Without dropout, which is drawn anew over another number of processes.
STILL = {"lora_dropout": 0.0}


def run(folder: Path, models: Path, objectives="grl", settings=None, resumed: str | bool | None = None, **options):
    """A run from its start or a checkpoint: losses, weights, and this process's rows of every step."""
    processes = dist.get_world_size() if dist.is_initialized() else 1
    options = {"per_device_train_batch_size": GLOBAL_ROWS // processes, "learning_rate": 1e-3, **OPTIONS, **options}
    made = trainer(folder, tiny_model(models, **(settings or {})), objectives, **options)
    rows, step = [], made.training_step
    made.training_step = lambda model, batch, *rest: (rows.append(batch.row_ids), step(model, batch, *rest))[1]
    made.train(resume_from_checkpoint=resumed)
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    return losses, weights(made.model), rows


def failing(act: Callable[[], object]) -> str:
    """The message with which it fails."""
    try:
        act()
    except ValueError as error:
        return str(error)
    return "did not fail"


@contextmanager
def breaking(rank: int, where: str, error: Exception, file: str) -> Iterator[None]:
    """Inside, in the process of this rank, ``torch.save`` or ``torch.load`` fails at one file."""
    real = getattr(torch, where)

    def broken(*args, **kwargs):
        if dist.get_rank() == rank and any(str(a).endswith(file) for a in args if isinstance(a, str | Path)):
            raise error
        return real(*args, **kwargs)

    with mock.patch.object(torch, where, broken):
        yield


def faults(folder: Path, models: Path) -> dict[str, object]:
    """What both processes say when something goes wrong in one."""
    full, vanished = OSError(errno.ENOSPC, "No space left on device"), FileNotFoundError(errno.ENOENT, "No such file")
    said: dict[str, object] = {}
    for name, rank, file in (("disk of 0", 0, "optimizer.pt"), ("disk of 1", 1, "rng_state_1.pth")):
        with breaking(rank, "save", full, f".unfinished-checkpoint-2/{file}"):
            said[name] = failing(lambda name=name: run(folder / name, models))
        dist.barrier()
        said[f"left by {name}"] = sorted(path.name for path in (folder / name / "run").iterdir())
    right = str(folder / "grl" / "run" / "checkpoint-4")
    with breaking(1, "load", vanished, "optimizer.pt"):
        said["vanished"] = failing(lambda: run(folder / "v", models, resumed=right))
    said["rows"] = failing(lambda: run(folder / "r", models, resumed=right, per_device_train_batch_size=4))
    said["missing"] = failing(lambda: run(folder / "m", models, resumed=str(folder / "nowhere")))
    return said


def damaged(folder: Path, models: Path) -> object:
    """A run whose last two checkpoints one process damages; then the others too."""
    place = folder / "damaged" / "run"
    run(folder / "damaged", models)
    if dist.get_rank() == 1:
        os.truncate(place / "checkpoint-6" / "optimizer.pt", 100)
        (place / "checkpoint-4" / "rng_state_1.pth").unlink()
    dist.barrier()
    found = run(folder / "damaged", models, resumed=True)
    dist.barrier()
    if dist.get_rank() == 1:
        for checkpoint in resume.checkpoints(place):
            (checkpoint / "trainer_state.json").write_text("{")
    dist.barrier()
    return found, failing(lambda: run(folder / "damaged", models, resumed=True))


class Signalled(TrainerCallback):
    """A signal comes to this process in its third step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            signal.raise_signal(signal.SIGTERM)


def stopped(folder: Path, models: Path) -> tuple[object, list[str]]:
    """A run of which one process alone is sent SIGTERM: the step and exit code of each, and what was saved."""
    stop = StopOnSignal()
    callbacks = [stop, *([Signalled()] if dist.get_rank() == 1 else [])]
    made = trainer(
        folder / "stopped", tiny_model(models), **{**OPTIONS, "per_device_train_batch_size": 5}, callbacks=callbacks
    )
    try:
        with stop.listening():
            made.train()
        stop.raise_if_stopped(made.state, folder / "stopped" / "run")
    except SystemExit as ended:
        return (made.state.global_step, ended.code), [p.name for p in resume.checkpoints(folder / "stopped" / "run")]
    return "did not stop", []


def resumed_runs(folder: Path, models: Path, *names: str, **options) -> dict[object, object]:
    """Cases from their start, and from each checkpoint."""
    found: dict[object, object] = {}
    for name in names:
        case = CASES[name]
        found[name] = run(folder / name, models, **case, **options)
        for step in (2, 4):
            place = str(folder / name / "run" / f"checkpoint-{step}")
            again = {**case, **options, "save_strategy": "no"}
            found[name, step] = run(folder / f"{name} again", models, resumed=place, **again)
    return found


def slow_worker(rank: int, port: int, folder: Path) -> None:
    """The other case, and all with the weights sharded over the processes."""
    join_group(rank, 2, port)
    found = {"DDP": resumed_runs(folder / "whole", folder / "models", "sft, all weights")}
    found["FSDP2"] = resumed_runs(folder / "sharded", folder / "models", *CASES, fsdp=True)
    torch.save(found, folder / f"found-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def worker(rank: int, port: int, folder: Path) -> None:
    """All of it in one of two processes; what came out goes into a file."""
    join_group(rank, 2, port)
    models = folder / "models"  # which the run on one process has written
    found: dict[object, object] = resumed_runs(folder, models, "grl")
    found["on two"] = run(folder / "two", models, settings=STILL)
    found["one on two"] = run(
        folder / "t", models, settings=STILL, resumed=str(folder / "one" / "run" / "checkpoint-4"), save_strategy="no"
    )
    found |= faults(folder, models)
    found["damaged"] = damaged(folder, models)
    found["stopped"] = stopped(folder, models)
    torch.save(found, folder / f"found-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
