"""Several gloo processes compute what one does, under DDP and sharded: gradients (float64, 1e-9) and losses."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.runs import BATCH, RUNS, run_of, save_weights, steps_and_runs, trainer_of
from tests.distributed.workers import VARIANTS, WRAPPERS, one_process, save_models, spawned
from tests.parity.oracle import relative_error
from ullme.objectives import PRESETS

STEPS = [(v, c, p) for v, (_, presets, cases) in VARIANTS.items() for c in cases for p in presets]
WORLDS = [2, pytest.param(4, marks=pytest.mark.slow)]


SHARDED = {"DDP": False, "FSDP2": True}


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"{world} processes")
def folder_of(request, tmp_path_factory):
    """One spawn of so many processes for everything, into a folder."""
    folder = tmp_path_factory.mktemp("processes")
    save_models(folder)
    save_weights(folder)
    spawned(steps_and_runs, request.param, folder)
    return folder, request.param


@pytest.fixture(scope="module")
def results(folder_of):
    """The steps that each rank took under each wrapper, and those of one process."""
    folder, world = folder_of
    found = {w: [torch.load(folder / f"{w}-{r}.pt", weights_only=False) for r in range(world)] for w in WRAPPERS}
    return found, one_process(folder, world)


@pytest.fixture(scope="module")
def whole_runs(folder_of):
    """The runs of two processes, and of one."""
    folder, world = folder_of
    if world != 2:
        pytest.skip("whole runs take two processes")
    found = {
        (name, kind): [torch.load(folder / f"{name}-{sharded}-{r}.pt", weights_only=False) for r in range(2)]
        for name in RUNS
        for kind, sharded in SHARDED.items()
    }
    return found, {name: run_of(trainer_of(folder, name, 1)) for name in RUNS}


@pytest.mark.parametrize(("variant", "case", "preset"), STEPS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_gradient_and_loss_equal_one_process(results, wrapper, variant, case, preset):
    ranks, single = results
    right = single[variant, case, preset]
    for rank in ranks[wrapper]:
        found = rank[variant, case, preset]
        assert relative_error(found.gradients, right.gradients) < 1e-9
        assert found.total == pytest.approx(right.total, rel=1e-12)


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


@pytest.mark.parametrize("name", RUNS)
def test_the_wrapper_is_what_was_asked_for(whole_runs, name):
    found, _ = whole_runs
    assert {run.wrapper for run in found[name, "DDP"]} == {"DistributedDataParallel"}
    assert {run.wrapper for run in found[name, "FSDP2"]} == {"FSDPULLME"}
    assert all("FSDPLlamaDecoderLayer" in run.wrapped for run in found[name, "FSDP2"])


@pytest.mark.parametrize("kind", SHARDED)
@pytest.mark.parametrize("name", RUNS)
def test_a_run_equals_one_process(whole_runs, name, kind):
    """Losses, evaluations during training and final weights; in bf16 it runs and is near."""
    found, single = whole_runs
    right, loose = single[name], name == "bf16"
    for run in found[name, kind]:
        assert run.losses == pytest.approx(right.losses, rel=0.1 if loose else 1e-4)
        assert run.evaluated == pytest.approx(right.evaluated, rel=0.1 if loose else 1e-4)
        assert run.weights.keys() == right.weights.keys()
        assert loose or relative_error(run.weights, right.weights) < 1e-4


@pytest.mark.parametrize("kind", SHARDED)
@pytest.mark.parametrize("name", RUNS)
def test_every_row_comes_once_an_epoch(whole_runs, name, kind):
    """24 rows in three batches, of which the last is uneven."""
    ranks = whole_runs[0][name, kind]
    batches = [[row for rank in ranks for row in rank.rows[step]] for step in range(3)]
    assert sorted(map(len, batches)) == [4, BATCH, BATCH]
    seen = [row for batch in batches for row in batch]
    assert len(seen) == len(set(seen)) == 24
