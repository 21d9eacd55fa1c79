"""Two gloo processes resume exactly, on one process too, and what goes wrong in one of them ends both with its name."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.multiprocessing as mp

from tests.distributed.resume_workers import CASES, STILL, run, slow_worker, worker
from tests.parity.oracle import relative_error
from tests.tiny import tiny_folder


def spawned(work, folder) -> list[dict]:
    """What each of two processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(port, folder), nprocs=2)
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What two processes found, what one did, and the folder; one spawn for all."""
    folder = tmp_path_factory.mktemp("resume")
    one = run(folder / "one", folder / "models", settings=STILL)
    return spawned(worker, folder), one, folder


def require_exact(ranks: list[dict], case: str, step: int) -> None:
    for rank in ranks:
        losses, weights, rows = rank[case]
        again = rank[case, step]
        assert again[0] == pytest.approx(losses, rel=1e-6)
        assert again[2] == rows[step:]
        assert relative_error(again[1], weights) < 1e-6


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_of_two_processes_is_the_uninterrupted_one(results, step):
    """With dropout: each process has its own random numbers back."""
    require_exact(results[0], "grl", step)


@pytest.mark.slow
def test_a_resumed_run_of_all_or_of_sharded_weights_is_the_uninterrupted_one(tmp_path):
    tiny_folder(tmp_path / "models" / "llama")
    ranks = spawned(slow_worker, tmp_path)
    for wrapper, cases in {"DDP": ["sft, all weights"], "FSDP2": [*CASES]}.items():
        for case in cases:
            for step in (2, 4):
                require_exact([rank[wrapper] for rank in ranks], case, step)


def test_a_run_goes_on_over_another_number_of_processes(results):
    """One process's checkpoint on two, and theirs on one: same rows in every step, same losses and weights."""
    ranks, one, folder = results
    two_on_one = run(
        folder / "o", folder / "models", settings=STILL, resumed=str(folder / "two" / "run" / "checkpoint-4")
    )
    assert two_on_one[2] == one[2][4:]
    on_two = [set(a) | set(b) for a, b in zip(*(rank["one on two"][2] for rank in ranks), strict=True)]
    assert on_two == [set(rows) for rows in one[2][4:]]
    for found in (two_on_one, *(rank["one on two"] for rank in ranks)):
        assert found[0] == pytest.approx(one[0], rel=1e-5)
        assert relative_error(found[1], one[1]) < 1e-4


FAULTS = {
    "disk of 0": "checkpoint-2' cannot be written (No space left on device",
    "disk of 1": "checkpoint-2' cannot be written (No space left on device",
    "vanished": "checkpoint-4' can no longer be read ([Errno 2] No such file",
    "rows": "a step has 8 rows on 2 process(es), and had 10",
    "missing": "nowhere': there is no such folder",
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_goes_wrong_in_one_process_ends_both_with_its_name(results, name):
    for rank in results[0]:
        assert FAULTS[name] in rank[name]
    if name == "disk of 1":
        assert results[0][0][name].startswith("process 1 failed: checkpoint")


@pytest.mark.parametrize("name", ["disk of 0", "disk of 1"])
def test_nothing_is_left_of_a_checkpoint_that_one_process_could_not_write(results, name):
    assert results[0][0][f"left by {name}"] == []


def test_both_processes_go_back_to_the_same_whole_checkpoint_and_end_where_they_would_have(results):
    for rank in results[0]:
        found, message = rank["damaged"]
        losses, weights, rows = rank["grl"]
        assert found[2] == rows[2:]
        assert found[0] == pytest.approx(losses, rel=1e-6) and relative_error(found[1], weights) < 1e-6
        assert "is whole" in message and "trainer_state.json has 1 bytes" in message


def test_a_signal_to_one_process_stops_both_after_the_same_step(results):
    assert [rank["stopped"] for rank in results[0]] == [((3, 143), ["checkpoint-2", "checkpoint-3"])] * 2
