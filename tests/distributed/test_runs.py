"""Whole runs on two gloo processes end where one process ends, sharded or not."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.distributed.runs import BATCH, RUNS, SHARDED, run_of, runs, save_weights, trainer_of
from tests.distributed.workers import spawned
from tests.parity.oracle import relative_error

NAMES = ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in RUNS if name != "lora")]


@pytest.fixture(scope="module", params=NAMES)
def results(request, tmp_path_factory):
    """What each of two processes found, by how it ran; what one process finds; and how near they must be."""
    folder, name = tmp_path_factory.mktemp("runs"), request.param
    save_weights(folder, name)
    spawned(partial(runs, name), 2, folder)
    found = [torch.load(folder / f"run-{rank}.pt", weights_only=False) for rank in range(2)]
    single = run_of(trainer_of(folder, name, 1, output_dir=str(folder / "one")))
    return (
        {kind: [rank[kind] for rank in found] for kind in found[0]},
        single,
        0.1 if name == "bf16" else 1e-4,
        (folder, name),
    )


def test_the_wrapper_is_what_was_asked_for(results):
    found, *_ = results
    assert {run.wrapper for run in found["DDP"]} == {"DistributedDataParallel"}
    assert {run.wrapper for run in found["FSDP2"]} == {"FSDPULLME"}
    assert all("FSDPLlamaDecoderLayer" in run.wrapped for run in found["FSDP2"])


@pytest.mark.parametrize("kind", SHARDED)
def test_a_run_equals_one_process(results, kind):
    """Losses, evaluations during training and final weights."""
    found, single, error, _ = results
    for run in found[kind]:
        assert run.losses == pytest.approx(single.losses, rel=error)
        assert run.evaluated == pytest.approx(single.evaluated, rel=error)
        assert run.weights.keys() == single.weights.keys()
        assert relative_error(run.weights, single.weights) < error


def test_a_sharded_run_goes_on_from_its_checkpoint(results):
    """The second half, and the same end, to the last bits of a sum over two processes."""
    found, *_ = results
    for whole, half in zip(found["FSDP2"], found["FSDP2 from its checkpoint"], strict=True):
        assert half.rows == whole.rows[2:]
        assert relative_error(half.weights, whole.weights) < 1e-6


def test_a_sharded_checkpoint_is_that_of_one_process(results, tmp_path):
    """Adapter or all weights, whole, under the same names: one process goes on from it to the same end."""
    *_, (folder, name) = results
    went_on = run_of(trainer_of(folder, name, 1, output_dir=str(tmp_path)), str(folder / "FSDP2" / "checkpoint-2"))
    found, single, error, _ = results
    assert relative_error(went_on.weights, single.weights) < error


@pytest.mark.parametrize("kind", SHARDED)
def test_every_row_comes_once_an_epoch(results, kind):
    """24 rows in three batches, of which the last is uneven."""
    ranks = results[0][kind]
    batches = [[row for rank in ranks for row in rank.rows[step]] for step in range(3)]
    assert sorted(map(len, batches)) == [4, BATCH, BATCH]
    seen = [row for batch in batches for row in batch]
    assert len(seen) == len(set(seen)) == 24
