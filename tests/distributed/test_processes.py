"""Several gloo processes compute what one does, under DDP and sharded: gradients (float64, 1e-9) and losses."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.distributed.workers import VARIANTS, WRAPPERS, one_process, save_models, spawned, steps
from tests.parity.oracle import relative_error
from ullme.objectives import PRESETS

QUICK = ("lora", "lora, recomputed", "lora, padded", "full")
MORE = tuple(name for name in VARIANTS if name not in QUICK)
SPAWNS = [
    pytest.param((2, QUICK), id="2 processes"),
    pytest.param((2, MORE), id="2 processes, more variants", marks=pytest.mark.slow),
    pytest.param((4, tuple(VARIANTS)), id="4 processes", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=SPAWNS)
def results(request, tmp_path_factory):
    """One spawn for all steps: what each rank found under each wrapper, and what one process finds."""
    world, names = request.param
    folder = tmp_path_factory.mktemp("steps")
    save_models(folder, names)
    spawned(partial(steps, names), world, folder)
    found = [torch.load(folder / f"steps-{rank}.pt", weights_only=False) for rank in range(world)]
    return {wrapper: [rank[wrapper] for rank in found] for wrapper in WRAPPERS}, one_process(folder, names, world)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_gradient_and_loss_equal_one_process(results, wrapper, preset):
    """For every way to train the preset and every uneven share of its batch."""
    ranks, single = results
    for key, right in single.items():
        if key[2] == preset:
            for rank in ranks[wrapper]:
                assert relative_error(rank[key].gradients, right.gradients) < 1e-9, key
                assert rank[key].total == pytest.approx(right.total, rel=1e-12), key


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_lambdas_do_not_depend_on_the_number_of_processes(results, wrapper, preset):
    """The mean of each term is that of one process, and the total weighs them as the preset says."""
    ranks, single = results
    for key, right in single.items():
        if key[2] == preset:
            for rank in ranks[wrapper]:
                assert rank[key].losses == pytest.approx(right.losses, rel=1e-12)
                weighted = [t.weight * rank[key].losses[t.type] for t in PRESETS[preset]]
                assert rank[key].total == pytest.approx(sum(weighted), rel=1e-12)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_ranks_run_equally_many_chunks(results, wrapper):
    ranks, _ = results
    counts = [{key: found.chunks for key, found in rank.items()} for rank in ranks[wrapper]]
    assert all(count == counts[0] for count in counts)
    assert max(counts[0].values()) > 1


def test_sharded_processes_run_equally_many_passes(results):
    """Which they would not by themselves where texts are padded: each pass gathers weights from all."""
    ranks, single = results
    counts = {kind: {key: {rank[key].passes for rank in found} for key in single} for kind, found in ranks.items()}
    assert all(len(different) == 1 for different in counts["FSDPULLME"].values())
    padded = [different for key, different in counts["DistributedDataParallel"].items() if key[0] == "lora, padded"]
    assert not padded or any(len(different) > 1 for different in padded)
