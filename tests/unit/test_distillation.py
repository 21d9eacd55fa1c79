"""Distillation against closed forms in plain Python, and against sentence-transformers, values and gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss
from sentence_transformers.util import pairwise_cos_sim, pairwise_dot_score

from tests.unit.training import pairs, tiny_model, trainer
from ullme.data import PairDataset
from ullme.objectives import Distillation, GenerationDistillation, MarginMSE, needs_of, objectives_from
from ullme.types import ObjectiveInputs

B, P, D = 5, 4, 6


def inputs(positives: int = 1, ragged: bool = True) -> ObjectiveInputs:
    """Random inputs; with ``ragged`` the second query lacks its last passage and the third has no negatives."""
    g = torch.Generator().manual_seed(positives)
    mask_BP = torch.ones(B, P, dtype=torch.bool)
    if ragged:
        mask_BP[1, -1] = False
        mask_BP[2, positives:] = False
    positive_BP = torch.zeros(B, P, dtype=torch.bool)
    positive_BP[:, :positives] = True

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return ObjectiveInputs(
        passage_mask_BP=mask_BP,
        positive_mask_BP=positive_BP & mask_BP,
        query_key_B=torch.arange(B),
        passage_key_BP=torch.arange(B * P).view(B, P),
        row_ids=("",) * B,
        query_BD=random(B, D).requires_grad_(),
        passage_BPD=random(B, P, D).masked_fill(~mask_BP[..., None], 0).requires_grad_(),
        logp_BP=(-9 * random(B, P).abs()).masked_fill(~mask_BP, 0).requires_grad_(),
        tokens_BP=torch.randint(1, 9, (B, P), generator=g) * mask_BP,
        teacher_BP=(8 * random(B, P)).float().masked_fill(~mask_BP, 0),
    )


def passages(x: ObjectiveInputs, b: int) -> list[int]:
    return [p for p in range(P) if x.passage_mask_BP[b, p]]


def has_negative(x: ObjectiveInputs, b: int) -> bool:
    return any(not x.positive_mask_BP[b, p] for p in passages(x, b))


def dot(x: ObjectiveInputs, b: int, p: int) -> float:
    return sum(u * v for u, v in zip(x.query_BD[b].tolist(), x.passage_BPD[b, p].tolist(), strict=True))


def cosine(x: ObjectiveInputs, b: int, p: int) -> float:
    return dot(x, b, p) / (math.hypot(*x.query_BD[b].tolist()) * math.hypot(*x.passage_BPD[b, p].tolist()))


def softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(s - max(scores)) for s in scores)
    return [math.exp(s - max(scores)) / total for s in scores]


def kl(teacher: list[float], student: list[float]) -> float:
    return sum(t * math.log(t / s) for t, s in zip(softmax(teacher), softmax(student), strict=True))


@pytest.mark.parametrize("positives", [1, 2])
def test_distillation_is_the_divergence_of_the_students_distribution_from_the_teachers(positives):
    x = inputs(positives)
    found = Distillation(temperature=0.1, teacher_temperature=4.0)(x).tolist()
    for b in range(B):
        teacher = [float(x.teacher_BP[b, p]) / 4.0 for p in passages(x, b)]
        student = [cosine(x, b, p) / 0.1 for p in passages(x, b)]
        assert found[b] == pytest.approx(kl(teacher, student) if has_negative(x, b) else 0.0, rel=1e-9)
    assert found[2] == 0.0 and min(found[:2]) > 0.1


@pytest.mark.parametrize("positives", [1, 2])
def test_the_generation_space_is_taught_alike(positives):
    x = inputs(positives)
    loss_B = GenerationDistillation(temperature=0.5, teacher_temperature=4.0)(x)
    gradient = torch.autograd.grad(loss_B.sum(), x.logp_BP)[0].tolist()
    for b in range(B):
        at = passages(x, b)
        teacher = [float(x.teacher_BP[b, p]) / 4.0 for p in at]
        student = [x.logp_BP[b, p].item() / int(x.tokens_BP[b, p]) / 0.5 for p in at]
        counts = has_negative(x, b)
        assert loss_B[b].item() == pytest.approx(kl(teacher, student) if counts else 0.0, rel=1e-9)
        slope = [s - t for s, t in zip(softmax(student), softmax(teacher), strict=True)]
        for p, by in zip(at, slope, strict=True):
            right = by / 0.5 / int(x.tokens_BP[b, p]) if counts else 0.0
            assert gradient[b][p] == pytest.approx(right, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("positives", [1, 2])
@pytest.mark.parametrize(
    "options, score, scale",
    [
        ({}, cosine, 20.0),
        ({"scale": 3.0}, cosine, 3.0),
        ({"similarity": "dot"}, dot, 1.0),
        ({"similarity": "dot", "scale": 0.5}, dot, 0.5),
    ],
)
def test_margin_mse_is_the_mean_squared_error_of_every_pairs_margin(positives, options, score, scale):
    x = inputs(positives)
    found = MarginMSE(**options)(x).tolist()
    for b in range(B):
        errors = []
        for p in passages(x, b):
            for n in passages(x, b):
                if x.positive_mask_BP[b, p] and not x.positive_mask_BP[b, n]:
                    margin = scale * (score(x, b, p) - score(x, b, n))
                    errors.append((margin - float(x.teacher_BP[b, p] - x.teacher_BP[b, n].double())) ** 2)
        right = sum(errors) / len(errors) if errors else 0.0
        assert found[b] == pytest.approx(right, rel=1e-6)  # the teacher's scores are float32
    assert found[2] == 0.0 and min(found[:2]) > 0.1


def test_what_equals_the_teacher_costs_nothing():
    x = inputs()
    score_BP = x.score_BP.detach()
    taught = replace(x, teacher_BP=score_BP)
    assert Distillation(temperature=0.05, teacher_temperature=0.05)(taught).abs().max() < 1e-12
    assert MarginMSE(scale=1.0)(replace(x, teacher_BP=score_BP + 7.0)).abs().max() < 1e-12


def same(ours: torch.Tensor, theirs: torch.Tensor, x: ObjectiveInputs) -> None:
    leaves = (x.query_BD, x.passage_BPD)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    for mine, other in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        assert other.abs().max() > 0
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("temperature, teacher_temperature", [(1.0, 1.0), (0.05, 1.0), (0.5, 4.0)])
def test_distillation_is_sentence_transformers_divergence(temperature, teacher_temperature):
    x = inputs(ragged=False)
    x = replace(x, teacher_BP=x.teacher_BP.double())
    theirs = DistillKLDivLoss(
        None, pairwise_cos_sim, student_temperature=temperature, teacher_temperature=teacher_temperature
    ).compute_loss_from_embeddings([x.query_BD, *x.passage_BPD.unbind(1)], x.teacher_BP)
    ours = Distillation(temperature=temperature, teacher_temperature=teacher_temperature)(x).mean()
    same(ours, theirs / temperature**2, x)


@pytest.mark.parametrize("negatives", [1, 3])
@pytest.mark.parametrize("similarity, theirs", [("cosine", pairwise_cos_sim), ("dot", pairwise_dot_score)])
def test_margin_mse_is_sentence_transformers_margin_mse(similarity, theirs, negatives):
    x = inputs(ragged=False)
    kept = slice(0, 1 + negatives)
    leaf = x.passage_BPD
    x = replace(
        x,
        passage_BPD=leaf[:, kept],
        teacher_BP=x.teacher_BP[:, kept].double(),
        passage_mask_BP=x.passage_mask_BP[:, kept],
        positive_mask_BP=x.positive_mask_BP[:, kept],
    )
    right = MarginMSELoss(None, theirs).compute_loss_from_embeddings(
        [x.query_BD, *x.passage_BPD.unbind(1)], x.teacher_BP
    )
    ours = MarginMSE(similarity=similarity, scale=1.0)(x).mean()
    same(ours, right, replace(x, passage_BPD=leaf))


@pytest.mark.parametrize("objective", [Distillation(), GenerationDistillation(), MarginMSE(), MarginMSE(scale=2.0)])
def test_no_gradient_and_no_trouble_comes_from_a_query_that_has_nothing_to_compare(objective):
    x = inputs()
    leaves = [x.query_BD, x.passage_BPD, x.logp_BP]
    gradients = torch.autograd.grad(objective(x).sum(), leaves, allow_unused=True)
    seen = [g for g in gradients if g is not None]
    assert seen and all(torch.isfinite(g).all() and not g[2].any() and g[0].any() for g in seen)
    assert not any(g[1, -1].any() for g in seen if g.ndim > 2)


def test_a_wide_spread_of_scores_stays_finite():
    x = inputs()
    x = replace(x, teacher_BP=x.teacher_BP * 1e4)
    for objective in (Distillation(temperature=1e-3), GenerationDistillation(temperature=1e-3), MarginMSE()):
        assert torch.isfinite(objective(x)).all()


def test_needs_follow_the_space_that_is_taught():
    assert needs_of([Distillation()]) == needs_of([MarginMSE()]) == {"embedding", "teacher"}
    assert needs_of([GenerationDistillation()]) == {"logp", "teacher"}


@pytest.mark.parametrize("options", [{"temperature": 0}, {"teacher_temperature": -1}, {"temperature": math.inf}])
def test_impossible_temperatures_are_refused(options):
    with pytest.raises(ValidationError):
        Distillation(**options)
    with pytest.raises(ValueError, match="objectives: margin_mse.scale"):
        objectives_from({"type": "margin_mse", "scale": 0})


@pytest.mark.parametrize("kind", ["distillation", "generation_distillation", "margin_mse"])
def test_training_lowers_the_loss_on_scores_that_rows_bring(tmp_path, kind):
    rows = [replace(row, scores=(4.0, 1.0, -2.0)) for row in pairs(12)]
    run = trainer(tmp_path, tiny_model(tmp_path, lora_dropout=0.0), {"type": kind}, PairDataset.from_examples(rows))
    before = run.evaluate(rows)["eval_loss"]
    run.train()
    assert run.evaluate(rows)["eval_loss"] < 0.95 * before


def test_a_loader_without_scores_is_refused(tmp_path):
    rows = PairDataset.from_examples(
        [replace(pairs(6)[0], scores=(1.0, 0.5, 0.0)), *(pairs(6)[i] for i in range(1, 6))]
    )
    run = trainer(tmp_path, tiny_model(tmp_path), {"type": "margin_mse"}, rows)
    with pytest.raises(ValueError) as error:
        run.train()
    said = str(error.value)
    assert "has no scores of a teacher, which margin_mse need(s); give every PairExample scores" in said
    assert "\n" not in said
