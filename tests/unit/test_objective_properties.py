"""What holds for every objective, those that are added later included: each is taken from the table of all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.bag import Bag
from tests.batches import random_batch
from ullme.data import with_mismatched
from ullme.gradcache import StepResult, gradcache_step
from ullme.objectives import OBJECTIVES, Contrastive, Objective
from ullme.types import Batch, ObjectiveInputs, Texts

TABLES = ("query_BD", "passage_BPD", "logp_BP", "masked_logp_B")
LIKELIHOODS = ("logp_BP", "ref_logp_BP", "mismatched_logp_BP", "mismatched_ref_logp_BP", "masked_logp_B")


@pytest.fixture(params=OBJECTIVES)
def objective(request) -> Objective:
    """One of every type, with its default options."""
    return OBJECTIVES[request.param]()


def batch_of(queries: int = 5, passages: int = 4, ragged: bool = True) -> Batch:
    return random_batch(queries, passages, seed=2, generation=True, ragged=ragged)


def step(batch: Batch, objective: Objective, chunk_tokens: int | None = None) -> tuple[StepResult, list[Tensor]]:
    """One objective's step on a Bag: what it measured, and the gradient of each table."""
    model = Bag()
    batch = with_mismatched(batch)
    terms = {objective.type: objective}
    measure = model if objective.measures else None
    result = gradcache_step(batch, forward=model, objectives=terms, measure=measure, chunk_tokens=chunk_tokens)
    return result, [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def columns(batch: Batch, order: list[int]) -> Batch:
    """The batch with these passages of every query, in this order."""
    width = batch.passage_mask_BP.shape[1]
    flat = [b * width + p for b in range(len(batch)) for p in order]
    return replace(
        batch,
        passage=batch.passage.rows(flat),
        generation=batch.generation.rows(flat),
        **{f: getattr(batch, f)[:, order] for f in ("passage_mask_BP", "positive_mask_BP", "passage_key_BP")},
        teacher_BP=batch.teacher_BP[:, order],
    )


def inputs_of(batch: Batch, dtype: torch.dtype = torch.float64) -> ObjectiveInputs:
    """What a Bag finds in a batch, as leaves of autograd where an objective may send gradient."""
    with torch.no_grad():
        found = Bag()(with_mismatched(batch))
    wide = {n: v.to(dtype) for n, v in found.__dict__.items() if isinstance(v, Tensor) and v.is_floating_point()}
    return replace(found, **{name: v.requires_grad_(name in TABLES) for name, v in wide.items()})


def loss_of(objective: Objective, x: ObjectiveInputs) -> Tensor:
    """The losses (B,) of these queries as a whole batch."""
    totals_S = objective.sums_BS(x).double().sum(0) if objective.measures else None
    return objective(replace(x, totals_S=totals_S))


def gradients_of(loss_B: Tensor, x: ObjectiveInputs) -> list[Tensor]:
    return list(torch.autograd.grad(loss_B.sum(), [getattr(x, name) for name in TABLES], materialize_grads=True))


def by_itself(objective: Objective) -> Objective:
    """The objective without other queries' passages, which are further negatives in a larger batch."""
    if not objective.couples_batch:
        return objective
    assert isinstance(objective, Contrastive), "say here how this coupled objective is told to keep to the query"
    return objective.model_copy(update={"in_batch_negatives": False})


def same(found: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.allclose(f, r, rtol=1e-9, atol=1e-12) for f, r in zip(found, right, strict=True))


# ---- what is asked of the tests themselves ----


def test_every_objective_learns_from_the_batch_of_these_tests(objective):
    result, gradients = step(batch_of(), objective)
    assert result.total > 0 and any(bool(gradient.any()) for gradient in gradients)


def test_the_divergence_of_these_tests_is_not_cut_off():
    ratio, mismatched, passages, queries = OBJECTIVES["kto"]().sums_BS(inputs_of(batch_of())).sum(0).tolist()
    assert ratio > 0.1 and (mismatched, passages, queries) == (18, 18, 5)


# ---- rows and negatives ----


@pytest.mark.parametrize("chunk_tokens", [1, 90, None])
def test_permuting_the_queries_permutes_the_losses_and_changes_nothing_else(objective, chunk_tokens):
    order = [3, 0, 4, 2, 1]
    right, right_gradients = step(batch_of(), objective)
    found, gradients = step(batch_of().rows(order), objective, chunk_tokens)
    assert same([found.loss_B[objective.type]], [right.loss_B[objective.type][order]])
    assert same(gradients, right_gradients)


def test_permuting_a_querys_negatives_changes_no_loss(objective):
    right, right_gradients = step(batch_of(), objective)
    found, gradients = step(columns(batch_of(), [0, 3, 1, 2]), objective)
    assert same([found.loss_B[objective.type]], [right.loss_B[objective.type]])
    assert same(gradients, right_gradients)


def test_an_absent_last_negative_is_one_that_was_never_there(objective):
    """Width is no option: a column that no query fills changes neither losses nor gradients."""
    narrow = batch_of(passages=3)
    found, gradients = step(widened(narrow), objective, 70)
    right, right_gradients = step(narrow, objective)
    assert same([found.loss_B[objective.type]], [right.loss_B[objective.type]])
    assert same(gradients, right_gradients)


def test_a_ragged_query_alone_has_the_loss_of_its_own_passages(objective):
    objective = by_itself(objective)
    x = inputs_of(batch_of())
    totals_S = objective.sums_BS(x).sum(0) if objective.measures else None
    loss_B = objective(replace(x, totals_S=totals_S))
    for b in range(5):
        kept = x.passage_mask_BP[b].nonzero().flatten().tolist()
        alone = columns(batch_of().rows([b]), kept)
        found = objective(replace(inputs_of(alone), totals_S=totals_S))
        assert same([found], [loss_B[b : b + 1]])


def test_nothing_is_read_of_an_absent_passage(objective):
    x = inputs_of(batch_of())
    absent_BP = ~x.passage_mask_BP
    assert absent_BP.sum() == 2
    names = ("logp_BP", "ref_logp_BP", "teacher_BP")
    spoilt = {name: getattr(x, name).masked_fill(absent_BP, -7.0).detach() for name in names}
    spoilt["logp_BP"].requires_grad_()
    spoilt["positive_mask_BP"] = x.positive_mask_BP | absent_BP
    y = replace(x, **spoilt)
    found, right = loss_of(objective, y), loss_of(objective, x)
    assert same([found], [right])
    assert same(gradients_of(found, y), gradients_of(right, x))


def widened(batch: Batch) -> Batch:
    """The batch with one more column, which no query fills."""
    width = batch.passage_mask_BP.shape[1]
    empty = Texts.from_lists([[]])

    def texts(old: Texts) -> Texts:
        both = Texts(old.ids_X, torch.cat([old.lengths_N, empty.lengths_N]), torch.cat([old.skip_N, empty.skip_N]))
        return both.rows([i for b in range(len(batch)) for i in (*range(b * width, (b + 1) * width), len(old))])

    def grown(value_BP: Tensor) -> Tensor:
        return torch.nn.functional.pad(value_BP, (0, 1))

    masks = {f: grown(getattr(batch, f)) for f in ("passage_mask_BP", "positive_mask_BP", "teacher_BP")}
    keys_BP = torch.nn.functional.pad(batch.passage_key_BP, (0, 1), value=-1)
    generation = texts(batch.generation)
    return replace(batch, passage=texts(batch.passage), generation=generation, passage_key_BP=keys_BP, **masks)


# ---- weights ----


@pytest.mark.parametrize("chunk_tokens", [1, 90])
def test_a_weight_means_the_same_for_every_chunk_size(objective, chunk_tokens):
    right, right_gradients = step(batch_of(), objective.model_copy(update={"weight": 1.0}))
    found, gradients = step(batch_of(), objective.model_copy(update={"weight": 2.5}), chunk_tokens)
    assert float(found.total) == pytest.approx(2.5 * float(right.total), rel=1e-12)
    assert same(gradients, [2.5 * gradient for gradient in right_gradients])


def test_a_weight_means_the_same_for_every_batch_size(objective):
    """A batch said twice has the same mean, and so the same gradient."""
    objective = by_itself(objective)
    once = batch_of(4)
    right, right_gradients = step(once, objective, 90)
    found, gradients = step(once.rows([0, 1, 2, 3, 0, 1, 2, 3]), objective, 90)
    assert float(found.total) == pytest.approx(float(right.total), rel=1e-12)
    assert same(gradients, right_gradients)


# ---- numbers ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", [(0.0, -1e4), (-1e4, 0.0), (0.0, 0.0), (-1e4, -1e4)])
def test_extreme_likelihoods_give_finite_losses_and_gradients(objective, pattern, dtype):
    """A passage that is certain, or impossible, whichever the positive and whatever the reference says."""
    x = inputs_of(batch_of(), dtype)
    changed = {}
    for i, name in enumerate(LIKELIHOODS):
        value = getattr(x, name).detach().clone()
        value[..., 0] = pattern[i % 2]
        value[..., 1:] = pattern[(i + 1) % 2]
        changed[name] = value.requires_grad_(name in TABLES)
    y = replace(x, **changed)
    loss_B = loss_of(objective, y)
    assert torch.isfinite(loss_B).all()
    assert all(torch.isfinite(gradient).all() for gradient in gradients_of(loss_B, y))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_anything_is_computed(objective, half):
    x = inputs_of(batch_of(), half)
    floating = {n: v for n, v in x.__dict__.items() if isinstance(v, Tensor) and v.is_floating_point()}
    wide = replace(x, **{n: v.detach().float().requires_grad_(n in TABLES) for n, v in floating.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_of(objective, x)
    right = loss_of(objective, wide)
    assert found.dtype == torch.float32 and torch.equal(found, right)
    for mine, other in zip(gradients_of(found, x), gradients_of(right, wide), strict=True):
        assert torch.equal(mine, other.to(half))
