"""Which row is released, and what its card says of how it was trained."""

from dataclasses import replace

import pytest

from tests.unit.test_reproduce_study import kept, study_in
from ullme.reproduce.options import Options
from ullme.reproduce.release import best
from ullme.reproduce.release_card import write_card
from ullme.reproduce.results import RowResult, TaskScore
from ullme.reproduce.rows import NAMED, chosen_rows
from ullme.reproduce.study import Job, stage_configs


@pytest.fixture
def study(tmp_path):
    return study_in(tmp_path)


def test_the_best_row_is_best_on_the_tasks_that_all_have(study, monkeypatch):
    monkeypatch.delenv("ULLME_MTEB_DATA", raising=False)
    study = replace(study, task_folder=None)
    first, second = (Job(NAMED["grl"], seed) for seed in (0, 1))
    kept(study, first, BIOSSES=50.0, Easy=99.0)
    kept(study, second, BIOSSES=60.0)
    assert best(study, [NAMED["grl"]]) == second


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("grl", "8 queries a step, 4 steps, seed 0; negatives of each query: 2, of at most 8 found."),
        ("grl_steps", "8 queries a step, 50 steps, seed 0; negatives of each query: 2, of at most 8 found."),
        ("grl_negatives", "8 queries a step, 4 steps, seed 0; negatives of each query: 1, of at most 8 found."),
    ],
)
def test_the_card_says_the_steps_and_negatives_of_the_run(study, tmp_path, name, said):
    card = card_of(study, Job(NAMED[name], 0), tmp_path / "model")
    assert said in card and f"- {said.split()[4]} steps are few" in card


def test_the_card_names_the_run_file_of_ones_own_row(study, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((study.configs / "grl.yaml").read_text())
    (row,) = chosen_rows([str(path)])
    assert "--rows mine.yaml \\\n" in card_of(study, Job(row, 0), tmp_path / "model")


def test_the_card_says_who_trained_it_and_what_scored_higher(study, tmp_path):
    def result(row, seed, score, commit):
        scores = (TaskScore("BIOSSES", "STS", score, "m", "r"),)
        return RowResult(row, NAMED[row].label, seed, "x", scores, ran_on={"commit": commit})

    own, unlucky = result("grl", 0, 50.0, "0123456789"), result("grl", 1, 47.0, "c" * 10)
    above, below = result("llm2vec", 1, 51.5, "a" * 10), result("bi_cl", 0, 49.0, "b" * 10)
    results = [above, own, unlucky, below]
    card = card_of(study, Job(NAMED["grl"], 0), tmp_path / "model", results)
    assert "\nTrained by commit 0123456: 8 queries a step" in card
    assert "\n  Below it, of the same row: seed 1 by 3.00.\n" in card
    assert "\n  Above it in the same study: LLM2Vec (seed 1) by 1.50.\n" in card
    best_of_all = card_of(study, Job(NAMED["llm2vec"], 1), tmp_path / "best", results)
    assert "Above it" not in best_of_all and "Below it" not in best_of_all


def test_the_card_offers_no_export_that_is_refused(study, tmp_path):
    job = Job(NAMED["echo"], 0)
    assert "\nullme export " in card_of(study, job, tmp_path / "model")
    card = card_of(study, job, tmp_path / "model", refusal="echo: True, and it cannot be read twice; train without it")
    assert "\n# ullme export refuses it: echo: True, and it cannot be read twice\n" in card
    assert "\nullme export " not in card and "\n  echo: true\n" in card
    assert f"; reads {study.budget.max_length} tokens of a text" in card


def card_of(study, job, folder, results=(), refusal=None):
    """The text of the card of a job."""
    counts = {"sha256": "x", "rows": 1, "in a test": 0, "trained on": 1}
    study = replace(study, data=replace(study.data, sources={"pairs": counts}))
    scores = [TaskScore("BIOSSES", "STS", 1.0, "m", "r")]
    config = stage_configs(study, job)[-1]
    return write_card(study, job, config, Options(), scores, results, folder, refusal).read_text()
