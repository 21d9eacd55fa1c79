"""Batches side by side, and calls of several threads to one model."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tests.unit.training import tiny_model
from ullme.models import ULLME
from ullme.models.streams import side_by_side
from ullme.models.turns import Turns

TEXTS = [" ".join(f"word{i * j % 17}" for j in range(3 + i % 40)) for i in range(60)]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_values_come_in_order_without_gradient_and_leave_the_number_of_threads():
    seen: set[int] = set()
    met = threading.Barrier(2, timeout=60)

    def square(item: int) -> tuple[int, bool, int]:
        if item < 2:
            met.wait()  # passes only if two are computed at a time
        seen.add(threading.get_ident())
        return item * item, torch.is_grad_enabled(), torch.get_num_threads()

    found = list(side_by_side(square, range(20), 2))
    assert found == [(i * i, False, 1) for i in range(20)]
    assert threading.get_ident() not in seen and torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_the_callers_autocast_holds_in_every_thread():
    def product(_: int) -> torch.dtype:
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert set(side_by_side(product, range(4), 2)) == {torch.bfloat16}
    assert set(side_by_side(product, range(4), 2)) == {torch.float32}


@pytest.mark.usefixtures("two_threads")
def test_what_a_batch_raises_is_raised_and_threads_are_as_before():
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda item: 1 // item, [1, 0, 1], 2))
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_streams_change_no_embedding(tmp_path, attention):
    model = tiny_model(tmp_path)
    assert model.switch.packs
    found = model.encode(TEXTS, attention=attention)
    torch.set_num_threads(1)
    np.testing.assert_allclose(found, model.encode(TEXTS, attention=attention), atol=1e-6)


@pytest.mark.usefixtures("two_threads")
def test_threads_may_encode_under_either_attention_at_the_same_time(tmp_path):
    tiny_model(tmp_path).save_pretrained(tmp_path / "trained")
    model = ULLME.from_pretrained(tmp_path / "trained")
    calls = ["bidirectional", "causal"] * 8
    right = {attention: model.encode(TEXTS, attention=attention) for attention in calls[:2]}
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda attention: model.encode(TEXTS, attention=attention), calls))
    for attention, rep_ND in zip(calls, found, strict=True):
        np.testing.assert_allclose(rep_ND, right[attention], atol=1e-6)
    assert model.config._attn_implementation == "sdpa"


def test_one_state_at_a_time_is_held_and_only_while_somebody_needs_it():
    turns, log = Turns(), []

    def other() -> None:
        with turns.held("b", nullcontext):
            log.append("b")

    with turns.held("a", nullcontext):
        thread = threading.Thread(target=other)
        thread.start()
        with turns.held("a", nullcontext):  # the same state, again
            log.append("a")
        log.append("still a")
    thread.join(timeout=60)
    assert log == ["a", "still a", "b"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda turns: pickle.loads(pickle.dumps(turns))])
def test_a_copy_has_turns_of_its_own(copied):
    turns = Turns()
    with turns.held("a", nullcontext), copied(turns).held("b", nullcontext):  # would wait for ever for the same one
        pass
