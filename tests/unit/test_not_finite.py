"""A NaN or an infinity stops a run and names its rows; it is never averaged away, masked away or logged."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.bag import Bag
from tests.batches import random_batch
from tests.unit.training import pairs, tiny_model, trainer
from ullme.data import with_mismatched
from ullme.gradcache import batch_losses, gradcache_step
from ullme.objectives import OBJECTIVES, named
from ullme.objectives.base import FIELDS_OF_NEED
from ullme.types import IGNORED, Batch, MaskedTexts, ObjectiveInputs, PairExample

BROKEN = [math.nan, math.inf, -math.inf]
ROW = 1


def batch_for(objective) -> Batch:
    """Four queries; the second has a positive alone, the last is padding."""
    batch = random_batch(4, 3, seed=5, generation=True)
    mask_BP = batch.passage_mask_BP.clone()
    mask_BP[ROW, 1:], mask_BP[3] = False, False
    teacher_BP = torch.rand(4, 3).double() * mask_BP
    target_X = torch.where(torch.arange(len(batch.query.ids_X)) % 2 == 0, batch.query.ids_X, IGNORED)
    masked = MaskedTexts(batch.query, target_X)
    batch = replace(batch, passage_mask_BP=mask_BP, teacher_BP=teacher_BP, masked=masked)
    return with_mismatched(batch, alone=True) if "mismatched" in objective.measures else batch


def broken_fields(objective) -> list[str]:
    """Every number of a query that the objective reads."""
    fields = [field for need in sorted(objective.needs | objective.measures) for field in FIELDS_OF_NEED[need]]
    return [field for field in fields if "tokens" not in field]


CASES = [(kind, field) for kind, cls in OBJECTIVES.items() for field in broken_fields(cls())]


class Breaking(nn.Module):
    """A model one of whose numbers is broken: that of a query, in its first place, under some row."""

    def __init__(self, field: str, value: float, row_id: str) -> None:
        super().__init__()
        self.bag, self.field, self.value, self.row_id = Bag(), field, value, row_id

    def forward(self, chunk: Batch) -> ObjectiveInputs:
        inputs = self.bag(chunk)
        value = getattr(inputs, self.field)
        if self.row_id not in chunk.row_ids:
            return inputs
        place = torch.zeros_like(value, dtype=torch.bool)
        place[chunk.row_ids.index(self.row_id)].view(-1)[0] = True
        return replace(inputs, **{self.field: torch.where(place, self.value, value)})


def results(kind: str, field: str, value: float, row_id: str):
    """A step's and an evaluation's result, in one chunk and in one per query."""
    terms = named([OBJECTIVES[kind]()])
    batch = batch_for(terms[kind])
    for chunk_tokens in (None, 1):
        for function in (gradcache_step, batch_losses):
            model = Breaking(field, value, row_id)
            measure = model if terms[kind].measures else None
            yield function(batch, forward=model, objectives=terms, measure=measure, chunk_tokens=chunk_tokens)


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize(("kind", "field"), CASES)
def test_a_broken_number_is_found_whatever_the_objective_makes_of_it_and_its_row_alone_is_named(kind, field, value):
    for result in results(kind, field, value, f"row:{ROW}"):
        assert not result.finite
        assert result.rows_not_finite([f"row:{b}" for b in range(4)]) == [f"row:{ROW}"]


def test_a_loss_that_is_broken_by_itself_names_its_row():
    class Exploding(OBJECTIVES["sft"]):
        def loss_B(self, inputs):
            return super().loss_B(inputs) * torch.where(torch.arange(len(inputs.row_ids)) == 2, math.inf, 1.0)

    terms = named([Exploding()])
    for function in (gradcache_step, batch_losses):
        result = function(batch_for(terms["sft"]), forward=Bag(), objectives=terms)
        assert not result.finite and result.finite_B.all()
        assert result.rows_not_finite(["a", "b", "c", "d"]) == ["c"]


def rows_with_a_lone_one() -> list[PairExample]:
    return [*pairs(5), PairExample("a lone one", ("with a positive",), row_id="lone"), *pairs(3)]


def break_likelihood_of(model, text: str, value: float) -> None:
    """From now on the model's log-likelihood of a passage is this number."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    score = model.score_texts

    def score_texts(texts):
        logp_N, tokens_N = score(texts)
        parts = zip(texts.ids_X.split(texts.lengths_N.tolist()), texts.skip_N.tolist(), strict=True)
        hit_N = torch.tensor([part[skip:].tolist()[: len(ids)] == ids for part, skip in parts])
        return torch.where(hit_N, value, logp_N), tokens_N

    model.score_texts = score_texts


@pytest.mark.parametrize("value", BROKEN)
def test_training_stops_at_a_likelihood_that_every_loss_masks_away(tmp_path, value):
    """A lone positive has zero DPO and KL loss; its NaN would reach the weights all the same."""
    model = tiny_model(tmp_path)
    run = trainer(tmp_path, model, [{"type": "dpo"}, {"type": "kl"}], per_device_train_batch_size=9)
    break_likelihood_of(model, "with a positive", value)
    collate = run.data_collator
    run.train_loader = [collate(rows_with_a_lone_one())]
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"is not finite at step 1 .*rows lone; look at these rows"):
        run.train()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert run.state.log_history == []


@pytest.mark.parametrize("objectives", ["grl", "contrastive", [{"type": "dpo"}]])
@pytest.mark.parametrize("value", BROKEN)
def test_evaluation_stops_too_and_names_the_row(tmp_path, objectives, value):
    model = tiny_model(tmp_path)
    run = trainer(tmp_path, model, objectives, eval_dataset=rows_with_a_lone_one(), per_device_eval_batch_size=2)
    run.rank_agreement = True
    break_likelihood_of(model, "with a positive", value)
    with pytest.raises(ValueError, match=r"is not finite in evaluation after step 0 .*rows lone; look at these rows"):
        run.evaluate()
    assert run.state.log_history == []
