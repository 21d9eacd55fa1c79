"""What evaluation reports beside the losses, against scipy and plain loops."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from scipy.stats import kendalltau
from transformers import TrainerCallback

from tests.batches import random_batch
from tests.unit.training import pairs, tiny_model, trainer
from ullme.config import RunConfig
from ullme.data import PairCollator
from ullme.trainer import EmbeddingTrainer
from ullme.trainer.diagnostics import BOTH_SPACES, DIAGNOSTICS, diagnostics_of, kendall_tau, sums
from ullme.types import ObjectiveInputs, PairExample

pytestmark = pytest.mark.filterwarnings("ignore:One or more sample arguments is too small")

GAPS = ("logp_gap", "mean_logp_gap")
REWARDS = ("reward_margin", "reward_accuracy")


def inputs_of(queries: int = 7, passages: int = 5, seed: int = 0) -> ObjectiveInputs:
    """Random inputs: two positives in every third query, missing passages, a query with one alone, one with none."""
    batch = random_batch(queries, passages, seed=seed, generation=True, ragged=True)
    g = torch.Generator().manual_seed(seed)
    mask_BP = batch.passage_mask_BP.clone()
    mask_BP[2, 1:], mask_BP[3] = False, False
    positive_BP = batch.positive_mask_BP.clone()
    positive_BP[::3, 1] = True
    inputs = ObjectiveInputs.of(
        batch,
        query_BD=torch.randn(queries, 4, generator=g),
        passage_BPD=torch.randn(queries, passages, 4, generator=g),
        logp_BP=-10 * torch.rand(queries, passages, generator=g),
        ref_logp_BP=-10 * torch.rand(queries, passages, generator=g),
        tokens_BP=torch.randint(1, 9, (queries, passages), generator=g),
    )
    return ObjectiveInputs(**{**vars(inputs), "passage_mask_BP": mask_BP, "positive_mask_BP": positive_BP})


def pairs_of(inputs: ObjectiveInputs, b: int) -> list[tuple[int, int]]:
    exists, positive = inputs.passage_mask_BP[b].tolist(), inputs.positive_mask_BP[b].tolist()
    wins = [p for p in range(len(exists)) if exists[p] and positive[p]]
    loses = [p for p in range(len(exists)) if exists[p] and not positive[p]]
    return list(product(wins, loses))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def by_loop(name: str, inputs: ObjectiveInputs, b: int) -> float:
    """The figure of one query, NaN where it has none."""
    logp = inputs.logp_BP[b].tolist()
    ratio = (inputs.logp_BP - inputs.ref_logp_BP)[b].tolist()
    per_token = [value / tokens for value, tokens in zip(logp, inputs.tokens_BP[b].tolist(), strict=True)]
    if name == "rank_agreement":
        there = [p for p, exists in enumerate(inputs.passage_mask_BP[b].tolist()) if exists]
        cosine = torch.nn.functional.cosine_similarity(inputs.query_BD[b], inputs.passage_BPD[b], dim=-1)
        return kendalltau([float(cosine[p]) for p in there], [per_token[p] for p in there]).statistic
    of_pair = {
        "logp_gap": lambda p, n: logp[p] - logp[n],
        "mean_logp_gap": lambda p, n: per_token[p] - per_token[n],
        "reward_margin": lambda p, n: ratio[p] - ratio[n],
        "reward_accuracy": lambda p, n: float(ratio[p] > ratio[n]),
    }[name]
    return mean([of_pair(p, n) for p, n in pairs_of(inputs, b)])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_each_figure_is_what_a_loop_over_pairs_gives(name, seed):
    inputs = inputs_of(seed=seed)
    value_B, counted_B = DIAGNOSTICS[name].of(inputs)
    right = [by_loop(name, inputs, b) for b in range(7)]
    assert counted_B.tolist() == [not math.isnan(value) for value in right]
    known = [value for value in right if not math.isnan(value)]
    assert value_B[counted_B].tolist() == pytest.approx(known, rel=1e-5)
    total, count = sums({name: DIAGNOSTICS[name]}, inputs)[0].tolist()
    assert (total, count) == (pytest.approx(sum(known), rel=1e-5), 5)


@pytest.mark.parametrize("seed", range(20))
def test_kendalls_tau_is_scipys_with_ties(seed):
    g = torch.Generator().manual_seed(seed)
    a_BP, b_BP = torch.randint(0, 4, (2, 6, 7), generator=g).double()
    mask_BP = torch.rand(6, 7, generator=g) < 0.7
    tau_B, defined_B = kendall_tau(a_BP, b_BP, mask_BP)
    for b in range(6):
        right = kendalltau(a_BP[b][mask_BP[b]], b_BP[b][mask_BP[b]]).statistic
        assert bool(defined_B[b]) != math.isnan(right)
        assert float(tau_B[b]) == pytest.approx(right, abs=1e-12) or not defined_B[b]


def test_agreement_is_one_for_equal_and_minus_one_for_opposite_rankings():
    a_BP, there_BP = torch.tensor([[0.9, 0.1, 0.5]]), torch.ones(1, 3, dtype=torch.bool)
    assert float(kendall_tau(a_BP, a_BP.exp(), there_BP).value_B) == 1.0
    assert float(kendall_tau(a_BP, -a_BP, there_BP).value_B) == -1.0
    assert not kendall_tau(a_BP, torch.ones(1, 3), there_BP).counted_B.any()


def test_figures_follow_from_what_is_computed_anyway():
    assert set(diagnostics_of({"embedding"})) == set()
    assert set(diagnostics_of({"logp"})) == set(GAPS)
    assert set(diagnostics_of(BOTH_SPACES)) == {"rank_agreement", *GAPS}
    assert set(diagnostics_of({*BOTH_SPACES, "reference"}, False)) == {*GAPS, *REWARDS}


def evaluated(folder, objectives, rows=None, **options) -> dict[str, float]:
    run = trainer(folder, tiny_model(folder), objectives, eval_dataset=pairs(7) if rows is None else rows, **options)
    return run.evaluate()


def test_evaluation_reports_means_over_the_queries_that_have_them(tmp_path):
    rows = [*pairs(5), PairExample("a lone one", ("with a positive",), row_id="lone")]
    found = evaluated(tmp_path, "grl", rows, per_device_eval_batch_size=4)
    model = tiny_model(tmp_path).eval()
    with torch.no_grad():
        batch = PairCollator(model.text_tokenizer, generation=True)(rows)
        inputs = model(batch=batch, needs=("embedding", "logp", "reference"))
    for name in ("rank_agreement", *GAPS, *REWARDS):
        right = mean([by_loop(name, inputs, b) for b in range(5)])
        assert found[f"eval_{name}"] == pytest.approx(right, rel=1e-4, abs=1e-6), name


def test_a_figure_that_no_query_has_is_not_reported(tmp_path):
    rows = [PairExample(f"query {i}", (f"passage {i}",), row_id=str(i)) for i in range(3)]
    found = evaluated(tmp_path, "grl", rows)
    assert "eval_contrastive_loss" in found
    assert not [name for name in found if name.endswith(("agreement", "gap", "margin", "accuracy"))]


def test_each_evaluation_set_has_its_own_figures_and_all_are_logged(tmp_path):
    sets = {"near": pairs(5), "far": pairs(7)}
    run = trainer(tmp_path, tiny_model(tmp_path), "grl_sft", eval_dataset=sets)
    found = run.evaluate()
    assert {f"eval_{name}_{figure}" for name in sets for figure in ("rank_agreement", *GAPS)} <= set(found)
    assert run.state.log_history[-1].items() >= {"eval_far_logp_gap": found["eval_far_logp_gap"]}.items()


@pytest.mark.parametrize("chosen", [None, False, True])
def test_agreement_is_computed_where_asked_for_and_else_where_objectives_need_both_spaces(tmp_path, chosen):
    model = tiny_model(tmp_path)
    collator = PairCollator(model.text_tokenizer, generation=True)
    seen = []
    forward = model.forward
    model.forward = lambda *args, **kwargs: seen.append(kwargs["needs"]) or forward(*args, **kwargs)
    for objectives, auto in (("contrastive", False), ("grl_sft", True)):
        run = trainer(tmp_path, model, objectives)
        watched = EmbeddingTrainer(
            model, objectives, run.args, data_collator=collator, eval_dataset=pairs(5), rank_agreement=chosen
        )
        assert ("eval_rank_agreement" in watched.evaluate()) == (auto if chosen is None else chosen)
        assert set(seen[-1]) == set(run.needs) | (BOTH_SPACES if chosen else set())


def test_agreement_asked_for_without_generation_texts_is_refused(tmp_path):
    model = tiny_model(tmp_path)
    with pytest.raises(ValueError, match="rank_agreement: True .*generation=True"):
        EmbeddingTrainer(model, data_collator=PairCollator(model.text_tokenizer), rank_agreement=True)


class GradientNorm(TrainerCallback):
    """The norm of the gradient that the optimizer gets."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
        self.norm = float(torch.stack(squares).sum().sqrt())


@pytest.mark.parametrize("bound", [0.0, 1e-3])
def test_the_gradient_norm_is_logged_as_it_was_before_clipping_and_without_any(tmp_path, bound):
    watch = GradientNorm()
    run = trainer(tmp_path, tiny_model(tmp_path, lora_dropout=0.0), "contrastive", max_steps=1, callbacks=[watch])
    run.args.max_grad_norm = bound
    run.train()
    logged = run.state.log_history[0]["grad_norm"]
    assert watch.norm == pytest.approx(bound or logged, rel=1e-3)
    assert logged > 0.01


def test_a_run_file_that_asks_for_agreement_on_nothing_is_refused():
    run = {"model": {"name_or_path": "m"}, "data": {"train": [{"path": "p.jsonl"}]}}
    with pytest.raises(ValueError, match="trainer.rank_agreement: is true, and there is nothing to evaluate on"):
        RunConfig.model_validate({**run, "trainer": {"output_dir": "out", "rank_agreement": True}})
    assert RunConfig.model_validate({**run, "trainer": {"output_dir": "out"}}).trainer.rank_agreement is None
