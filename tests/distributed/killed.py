"""A process of a run in which one is lost in the middle of its second step; also what torchrun starts."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from tests.tiny import tiny_ullme
from tests.unit.training import trainer

#: After so many seconds without a sign of life a process is lost.
SECONDS = 5


def fail() -> None:
    raise ValueError("on purpose")


#: How a process is lost.
WAYS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "failed": fail,
}


def member(rank: int, world: int, port: int, folder: Path, lost: int, how: str, sharded: bool) -> None:
    """One of several processes; what it says on standard error goes into a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    file = os.open(folder / f"{rank}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 2)
    run(rank, folder, lost, how, sharded)


def run(rank: int, folder: Path, lost: int, how: str, sharded: bool) -> None:
    torch.set_num_threads(1)
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    model = tiny_ullme(folder, "llama", lora_name="test", lora_r=4)
    trained = trainer(folder, model, "grl", max_steps=4, chunk_tokens=60, rank_timeout=SECONDS, fsdp=sharded or None)
    forward = trained._forward

    def losing(module: Any, batch: Any) -> Any:
        if rank == lost and trained.state.global_step == 1:
            WAYS[how]()
        return forward(module, batch)

    trained._forward = losing
    trained.train()


if __name__ == "__main__":
    run(int(os.environ["RANK"]), Path(sys.argv[1]), lost=1, how="killed", sharded=False)
