"""A process that is killed, hangs or fails in the middle of a step ends the others, and they name it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.killed import SECONDS, member
from tests.tiny import tiny_folder

#: More than any end takes; reached only where a process hangs, which is then the failure.
PATIENCE = 90


def ends(folder: Path, world: int, lost: int, how: str, sharded: bool) -> dict[int, tuple[int | None, str]]:
    """Exit code (None: hangs) and last words of each process of a run in which one is lost."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    multiprocessing.set_forkserver_preload(["tests.distributed.runs"])
    args = (world, port, folder, lost, how, sharded)
    running = [context.Process(target=member, args=(rank, *args)) for rank in range(world)]
    for process in running:
        process.start()
    for rank, process in enumerate(running):
        if rank != lost or how != "stopped":
            process.join(PATIENCE)
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()
        process.join()
    words = {rank: folder / f"{rank}.txt" for rank in range(world)}
    return {rank: (codes[rank], path.read_text() if path.exists() else "") for rank, path in words.items()}


@pytest.fixture
def folder(tmp_path):
    tiny_folder(tmp_path / "llama")
    return tmp_path


@pytest.mark.parametrize(
    ("lost", "how", "sharded"),
    [(1, "killed", False), (0, "killed", False), (1, "killed", True), (2, "stopped", False), (1, "failed", True)],
)
def test_a_lost_process_ends_all_and_is_named(folder, lost, how, sharded):
    found = ends(folder, 3, lost, how, sharded)
    if how != "stopped":
        assert found[lost][0] == (-signal.SIGKILL if how == "killed" else 1)
    pid = (folder / f"{lost}.pid").read_text()
    for rank in {0, 1, 2} - {lost}:
        code, words = found[rank]
        assert code == 1  # neither hangs nor ends well
        assert f"process {lost}" in words
        if lost != 0:  # with process 0 goes the store that knows its name
            assert f"pid {pid}" in words
            assert (f"no sign of life for {SECONDS} s" if how != "failed" else "ValueError: on purpose") in words


@pytest.mark.slow
def test_torchrun_ends_all_and_names_the_rank(folder):
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d",
         "--rdzv-endpoint=127.0.0.1:0", "-m", "tests.distributed.killed", str(folder)],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 3,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert launched.returncode == 1
    assert "exitcode  : -9" in launched.stderr and "rank      : 1" in launched.stderr
