"""Objectives outside ullme: chosen by import path, kept by it, held to what an objective must be."""

import math
from typing import Literal

import pytest
import torch

from tests.extending import importable
from ullme.config import read_run_file
from ullme.objectives import DPO, Contrastive, Objective, as_mapping, named, objectives_from
from ullme.trainer import GradCacheTrainer
from ullme.types import ObjectiveInputs


@pytest.fixture
def outside(tmp_path, monkeypatch):
    yield from importable(tmp_path, monkeypatch)


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


def inputs(rows=3):
    torch.manual_seed(0)
    exists_BP = torch.ones(rows, 3, dtype=torch.bool)
    positive_BP = torch.tensor([True, False, False]).expand(rows, 3)
    keys = torch.arange(rows), torch.arange(3 * rows).view(rows, 3)
    return ObjectiveInputs(
        exists_BP, positive_BP, *keys, ("r",) * rows, query_BD=torch.randn(rows, 4), passage_BPD=torch.randn(rows, 3, 4)
    )


def test_the_pages_objective_equals_its_closed_form(outside):
    x = inputs()
    (objective,) = objectives_from({"type": "my_objective:MarginRanking", "margin": 0.3})
    score_BP = torch.cosine_similarity(x.query_BD[:, None], x.passage_BPD, dim=-1)
    expected = [sum(max(0.0, 0.3 - float(s[0] - s[n])) for n in (1, 2)) / 2 for s in score_BP]
    assert torch.allclose(objective(x), torch.tensor(expected))


def test_a_nan_is_not_hidden_by_the_pages_objective(outside):
    (objective,) = objectives_from("my_objective:MarginRanking")
    x = inputs()
    x.query_BD[0, 0] = math.nan
    assert torch.isnan(objective(x)[0])


# ---- objectives ----


def test_an_outside_objective_is_kept_by_its_import_path(outside):
    run = read_run_file(outside / "run.yaml", ["objectives.1.margin=0.4"])
    objective = run.objectives[1]
    assert (objective.type, objective.weight, objective.margin) == ("MarginRanking", 0.5, 0.4)
    assert as_mapping(objective) == {"type": "my_objective:MarginRanking", "weight": 0.5, "margin": 0.4}
    assert read_run_file(run.save(outside / "kept.yaml")) == run
    assert objectives_from(run.model_dump(mode="json")["objectives"]) == tuple(run.objectives)
    assert run.needs_negatives == ["MarginRanking"]


def test_a_subclass_of_an_own_objective_is_not_taken_for_it(outside):
    (narrow,) = objectives_from("my_broken:Narrow")
    assert as_mapping(narrow) == {**as_mapping(Contrastive()), "type": "my_broken:Narrow", "temperature": 0.01}
    assert as_mapping(DPO())["type"] == "dpo"


def test_logs_call_an_objective_by_its_class_or_by_the_type_it_states():
    class Margin(Objective):
        """An objective without a name of its own."""

    class Named(Objective):
        """One with a name."""

        type: Literal["margin"] = "margin"

    assert list(named([Margin(), Named(), Margin(), Contrastive()])) == ["Margin", "margin", "Margin_2", "contrastive"]


def test_the_papers_trainer_takes_an_outside_objective_for_its_generation_loss(outside):
    trainer = GradCacheTrainer(gen_loss_type="my_objective:MarginRanking", generation={"margin": 0.3}, use_cpu=True)
    assert list(named(trainer.objectives)) == ["contrastive", "MarginRanking"]
    assert (trainer.objectives[1].margin, trainer.objectives[1].weight) == (0.3, 0.5)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"needs": frozenset({"embeddings"})}, "needs ['embeddings'], which no model computes; choose from embedding"),
        ({"measures": frozenset({"logits"})}, "needs ['logits']"),
        ({"measures": frozenset({"mismatched"})}, "measures ['mismatched'] and sums nothing; give it sums_BS"),
        ({"couples_batch": True, "needs": frozenset({"logp"})}, "set needs to frozenset({'embedding'})"),
    ],
)
def test_a_class_that_asks_for_what_does_not_exist_is_refused_when_it_is_written(attributes, said):
    with pytest.raises(ValueError) as caught:
        type("Mine", (Objective,), {"__module__": __name__, **attributes})
    assert said in one_line(caught) and "Mine" in str(caught.value)


def test_a_loss_that_is_already_a_mean_is_refused():
    class Mean(Objective):
        """It takes the mean itself, which would depend on the chunks."""

        needs = frozenset({"embedding"})

        def loss_B(self, inputs):
            return inputs.score_BP.mean()

    with pytest.raises(ValueError, match=r"Mean: loss_B gives shape \(\) for 3 queries; return one loss per query"):
        Mean()(inputs())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"type": "my_objective:MarginRanking", "marginn": 1}, "key of MarginRanking: 'marginn' is unknown; did you"),
        ({"type": "my_objective:MarginRanking", "margin": -1}, "MarginRanking.margin: Input should be greater than"),
        ({"type": "my_broken:NoLoss"}, "'my_broken:NoLoss' computes no loss"),
        ({"type": "my_broken:Wider"}, "is the class Wider; name a subclass of ullme's Objective"),
        ({"type": "my_broken:two"}, "is of type function; name a subclass of ullme's Objective"),
        ({"type": "ullme.objectives:Objective"}, "is the class Objective; name a subclass"),
    ],
)
def test_what_is_no_objective_is_refused(outside, values, said):
    with pytest.raises(ValueError) as caught:
        objectives_from(values)
    assert said in one_line(caught)
