"""Two gloo processes under DDP compute what one process does: gradients (float64, 1e-9), losses, whole runs."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.multiprocessing as mp

from tests.distributed.workers import CASES, one_process, worker
from tests.parity.oracle import relative_error
from tests.tiny import tiny_ullme
from ullme.objectives import PRESETS


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One spawn for all presets: what each rank found, and what one process finds."""
    folder = tmp_path_factory.mktemp("two")
    torch.save(tiny_ullme(folder, "llama", lora_name="test", lora_r=4).state_dict(), folder / "weights.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(2, port, folder), nprocs=2)
    ranks = [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(2)]
    return ranks, one_process(folder)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("case", CASES)
def test_gradient_and_loss_equal_one_process(results, case, preset):
    ranks, single = results
    right, loss = single[case, preset]
    for rank in ranks:
        found, total, _ = rank[case, preset]
        assert relative_error(found, right) < 1e-9
        assert total == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_ranks_run_equally_many_chunks(results, case):
    ranks, _ = results
    counts = [{preset: rank[case, preset][2] for preset in PRESETS} for rank in ranks]
    assert counts[0] == counts[1]


def test_a_run_of_the_trainer_equals_one_process(results):
    """24 rows in batches of 10: the last one is split 2 and 2, and no row comes twice."""
    ranks, single = results
    losses, evaluated, weights = single["run"]
    for rank in ranks:
        assert rank["wrapper"] == "DistributedDataParallel"
        assert rank["run"][0] == pytest.approx(losses, rel=1e-5)
        assert rank["run"][1] == pytest.approx(evaluated, rel=1e-4)
        assert relative_error(rank["run"][2], weights) < 1e-4
