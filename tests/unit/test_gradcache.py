"""The step's bookkeeping, on a model of three tables: what is called how often, and what counts."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch

from tests.bag import Bag
from tests.batches import random_batch
from ullme.gradcache import batch_losses, gradcache_step
from ullme.objectives import DPO, KL, SFT, Contrastive, named
from ullme.types import Batch

TERMS = named([Contrastive(), SFT(weight=0.3), DPO(weight=0.5), KL()])


def step(batch: Batch, chunk_tokens: int | None = None, terms=TERMS, **options):
    model = Bag()
    result = gradcache_step(batch, forward=model, objectives=terms, chunk_tokens=chunk_tokens, **options)
    return model, result, [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def batch_of(queries: int = 5, passages: int = 3) -> Batch:
    return random_batch(queries, passages, seed=2, generation=True, ragged=True)


def test_the_first_chunk_runs_forward_once_and_the_others_twice_each():
    assert step(batch_of())[0].calls == [(5, True)]
    assert step(batch_of(), chunk_tokens=1)[0].calls == [(1, False)] * 4 + [(1, True)] * 5


def test_without_coupled_terms_nothing_runs_twice():
    terms = named([SFT(), DPO()])
    model, cut, found = step(batch_of(), 1, terms)
    assert model.calls == [(1, True)] * 5
    _, whole, right = step(batch_of(), None, terms)
    assert float(cut.total) == pytest.approx(float(whole.total), rel=1e-12)
    assert torch.allclose(found[1], right[1], rtol=1e-12)


def test_the_first_pass_uses_embed_where_it_is_given():
    embedder = Bag()
    model, _, _ = step(batch_of(), 1, embed=embedder)
    assert embedder.calls == [(1, False)] * 4 and model.calls == [(1, True)] * 5


@pytest.mark.parametrize("chunk_tokens", [1, 70, None])
def test_at_most_one_graph_waits_for_its_backward(chunk_tokens):
    waiting, most = 0, []

    class Watched(Bag):
        def forward(self, batch):
            nonlocal waiting
            waiting += torch.is_grad_enabled()
            most.append(waiting)
            return super().forward(batch)

    def backward(loss):
        nonlocal waiting
        loss.backward()
        waiting -= 1

    gradcache_step(batch_of(), forward=Watched(), objectives=TERMS, chunk_tokens=chunk_tokens, backward=backward)
    assert max(most) == 1 and waiting == 0


def test_all_chunks_but_the_last_run_without_synchronising():
    events = []

    @contextmanager
    def no_sync():
        events.append("quiet")
        yield
        events.append("loud")

    step(batch_of(), 1, no_sync=no_sync, backward=lambda loss: (events.append("backward"), loss.backward()))
    assert events == ["quiet", "loud"] + ["quiet", "backward", "loud"] * 4 + ["backward"]


def test_gradient_scale_scales_the_gradient_and_not_the_loss():
    _, plain, right = step(batch_of(), 60)
    _, scaled, found = step(batch_of(), 60, gradient_scale=4.0)
    assert float(scaled.total) == float(plain.total)
    assert all(torch.allclose(f, 4 * r, rtol=1e-12) for f, r in zip(found, right, strict=True))


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("chunk_tokens", [1, 70, None])
def test_a_weight_means_the_same_for_every_chunk_size(name, chunk_tokens):
    """Doubling one term's weight adds that term's own gradient once more."""
    alone = {name: TERMS[name].model_copy(update={"weight": 1.0})}
    _, _, own = step(batch_of(), None, alone)
    _, _, before = step(batch_of(), chunk_tokens)
    doubled = TERMS | {name: TERMS[name].model_copy(update={"weight": TERMS[name].weight + 1.0})}
    _, _, after = step(batch_of(), chunk_tokens, doubled)
    for b, a, o in zip(before, after, own, strict=True):
        assert torch.allclose(a - b, torch.zeros_like(b) if o is None else o, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["sft", "dpo", "kl"])
def test_a_weight_means_the_same_for_every_batch_size(name):
    """A batch said twice has the same mean, and so the same gradient."""
    once = batch_of(4)
    twice = once.rows([0, 1, 2, 3, 0, 1, 2, 3])
    _, first, right = step(once, 60, {name: TERMS[name]})
    _, second, found = step(twice, 60, {name: TERMS[name]})
    assert float(first.total) == pytest.approx(float(second.total), rel=1e-12)
    assert all(torch.allclose(f, r, rtol=1e-9) for f, r in zip(found, right, strict=True) if r is not None)


@pytest.mark.parametrize("chunk_tokens", [1, None])
def test_a_padding_row_neither_counts_nor_learns(chunk_tokens):
    batch = batch_of(5)
    masks = batch.passage_mask_BP.clone(), batch.positive_mask_BP.clone()
    masks[0][3], masks[1][3] = False, False
    padded = Batch(**{**batch.__dict__, "passage_mask_BP": masks[0], "positive_mask_BP": masks[1]})
    _, found, gradients = step(padded, chunk_tokens)
    _, right, expected = step(batch.rows([0, 1, 2, 4]), chunk_tokens)
    assert float(found.total) == pytest.approx(float(right.total), rel=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(gradients, expected, strict=True))
    assert found.loss_B["contrastive"][3] == 0


def test_the_total_is_the_weighted_sum_of_the_means_and_losses_are_per_query():
    _, result, _ = step(batch_of(), 60)
    assert list(result.losses) == list(TERMS) and result.loss_B["dpo"].shape == (5,)
    for name, value_B in result.loss_B.items():
        assert float(result.losses[name]) == pytest.approx(float(value_B.mean()), rel=1e-12)
    total = sum(TERMS[name].weight * float(result.losses[name]) for name in TERMS)
    assert float(result.total) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("chunk_tokens", [1, 70, None])
def test_evaluation_reports_what_the_step_reports(chunk_tokens):
    model = Bag()
    found = batch_losses(batch_of(), forward=model, objectives=TERMS, chunk_tokens=chunk_tokens)
    _, right, _ = step(batch_of())
    for name in TERMS:
        assert torch.allclose(found.loss_B[name], right.loss_B[name], rtol=1e-12)
    assert float(found.total) == pytest.approx(float(right.total), rel=1e-12)
    assert not any(graph for _, graph in model.calls)


def test_rows_that_are_not_finite_are_named_by_their_own_embedding_or_loss():
    batch = batch_of()
    model = Bag()
    broken = batch.query.rows([3]).ids_X[0]
    with torch.no_grad():
        model.vectors.weight[broken] = math.nan
    held = [b for b in range(5) if _holds(batch, b, int(broken))]
    result = gradcache_step(batch, forward=model, objectives=TERMS, chunk_tokens=1)
    assert result.rows_not_finite(batch.row_ids) == [f"row:{b}" for b in held] and 3 in held and len(held) < 5
    with torch.no_grad():
        model.vectors.weight[broken] = 0.0
        model.values.weight[batch.generation.rows([0]).ids_X[-1]] = math.inf
    result = gradcache_step(batch, forward=model, objectives=named([SFT()]), chunk_tokens=1)
    assert "row:0" in result.rows_not_finite(batch.row_ids)


def _holds(batch: Batch, b: int, token: int) -> bool:
    row = batch.rows([b])
    return token in row.query.ids_X.tolist() or token in row.passage.ids_X.tolist()
